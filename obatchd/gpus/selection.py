"""Which GPUs get which servers: a pure function of the settings and of the GPUs that the probe found."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from obatchd.errors import ConfigError
from obatchd.gpus.model import Gpu
from obatchd.settings.tables.servers import GpuSettings, ServerGroup


class PlannedServer(msgspec.Struct, frozen=True):
    """A server to be: its id and the GPUs it may see."""

    id: str  # "gpu0", "gpu0.mig1", "group0"
    gpus: tuple[Gpu, ...]


def choose(gpus: Sequence[Gpu], settings: GpuSettings, groups: Sequence[ServerGroup] = ()) -> list[PlannedServer]:
    """One server per chosen GPU and one per group; the GPUs of groups leave the pool.

    Raises ConfigError where a setting names a GPU that does not exist, or one GPU twice.
    """
    if settings.use == "none":
        return []
    excluded = _matches(gpus, settings.exclude, "gpus.exclude")
    servers: list[PlannedServer] = []
    grouped: set[str] = set()
    for number, group in enumerate(groups):
        where = f"servers.group[{number}].gpus"
        members = _matches(gpus, group.gpus, where)
        for gpu in members.values():
            if gpu.uuid in grouped or gpu.uuid in excluded:
                reason = "excluded" if gpu.uuid in excluded else "already in a group"
                raise ConfigError(f"{where}: {gpu.uuid} (index {gpu.index}) is {reason}; name it once.")
        grouped |= members.keys()
        servers.append(PlannedServer(f"group{number}", tuple(members.values())))
    wanted = _matches(gpus, settings.use, "gpus.use") if isinstance(settings.use, list) else {g.uuid: g for g in gpus}
    single = [gpu for uuid, gpu in wanted.items() if uuid not in excluded and uuid not in grouped]
    return [PlannedServer(_server_id(gpu), (gpu,)) for gpu in single] + servers


def _server_id(gpu: Gpu) -> str:
    return f"gpu{gpu.index}" if gpu.slice_index is None else f"gpu{gpu.index}.mig{gpu.slice_index}"


def _matches(gpus: Sequence[Gpu], names: Sequence[str | int], where: str) -> dict[str, Gpu]:
    """The GPUs meant by ``names``, once each. An index or a UUID of a card with slices means all its slices."""
    found: dict[str, Gpu] = {}
    for name in names:
        wanted = str(name)
        hits = [gpu for gpu in gpus if wanted in (gpu.uuid, gpu.parent_uuid, str(gpu.index))]
        if not hits:
            present = ", ".join(f"{gpu.index} = {gpu.uuid} ({gpu.name})" for gpu in gpus) or "none"
            raise ConfigError(f"{where}: there is no GPU {wanted!r} here. GPUs found: {present}.")
        found.update((gpu.uuid, gpu) for gpu in hits)
    return found
