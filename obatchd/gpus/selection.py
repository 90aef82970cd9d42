"""Which GPUs get which servers: pure functions of settings, environment, and the GPUs that the probe found.

Facts about the variables by which schedulers and containers give GPUs. CUDA takes indices and UUIDs, or their
beginnings, and stops at the first that it does not know (CUDA C++ Programming Guide, environment variables); Slurm says
``NoDevFiles`` for none. ``SLURM_STEP_GPUS`` and ``SLURM_JOB_GPUS`` (srun(1), sbatch(1)) and ``NVIDIA_VISIBLE_DEVICES``
have indices of the host, but inside the job or container NVML counts anew. A step on another node than the job's first
is told that one's ``SLURM_JOB_GPUS`` (seen with 22.05); its own stand in ``SLURM_STEP_GPUS``. For ``void``, as for
nothing, the container runtime does nothing; CDI sets it in containers that have their GPUs another way
(github.com/NVIDIA/nvidia-container-toolkit, pull request 395).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from obatchd.errors import ConfigError
from obatchd.gpus.model import Gpu
from obatchd.settings.tables.servers import GpuSettings, ServerGroup

_CUDA, _CONTAINER, _STEP, _JOB = "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"
_INDEX = re.compile(r"\d+(:\d+)?")  # of a card, or of one of its slices
_RANGE = re.compile(r"(\d{1,3})-(\d{1,3})")


class Given(NamedTuple):
    """The GPUs that the environment leaves to this process, and the variables that take others away, if any do."""

    gpus: list[Gpu]
    by: str


def given(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> Given:
    """The GPUs that a scheduler, a container or the user have given to this process; in all of the variables."""
    left, by = list(gpus), []
    for name in (_CUDA, _CONTAINER, _STEP if _STEP in environ else _JOB):
        value = environ.get(name)
        # The device plugin of Kubernetes may name a directory instead.
        if value is None or value.strip() == "all" or value.startswith("/"):
            continue
        words = [part for word in value.split(",") for part in _parts(word.strip())]
        named = _named(gpus, words, stops=name == _CUDA)
        if name != _CUDA and _is_done(gpus, words, name):
            continue
        kept = [gpu for gpu in left if gpu in named]
        if kept != left:
            left = kept
            by.append(f"{name}={value}")
    return Given(left, " and ".join(by))


def _parts(word: str) -> list[str]:
    """``0-2`` as three indices."""
    found = _RANGE.fullmatch(word)
    return [str(number) for number in range(int(found[1]), int(found[2]) + 1)] if found else [word]


def _is_done(gpus: Sequence[Gpu], words: Sequence[str], name: str) -> bool:
    """Whether the variable takes nothing from the GPUs that are listed here."""
    if name == _CONTAINER and set(words) <= {"", "void"}:
        return True
    if not all(_INDEX.fullmatch(word) for word in words):
        return False
    # Where no more are listed than are named, the others are hidden from us, and these are counted anew.
    listed = len(gpus) if any(":" in word for word in words) else len({gpu.card for gpu in gpus})
    return listed <= len(set(words))


def _named(gpus: Sequence[Gpu], words: Sequence[str], *, stops: bool) -> list[Gpu]:
    found: list[Gpu] = []
    for word in words:
        hits = _hits(gpus, word)
        if stops and not hits:
            break
        found += hits
    return found


def _hits(gpus: Sequence[Gpu], word: str) -> list[Gpu]:
    """The GPUs meant by an index, ``index:slice``, a UUID or its beginning; a card means all its slices."""
    if exact := [g for g in gpus if word in (g.uuid, g.card, str(g.index), f"{g.index}:{g.slice_index}")]:
        return exact
    begins = [
        g for g in gpus if word.startswith(("GPU-", "MIG-")) and (g.uuid.startswith(word) or g.card.startswith(word))
    ]
    return begins if len({g.uuid if word.startswith("MIG-") else g.card for g in begins}) == 1 else []


class PlannedServer(msgspec.Struct, frozen=True):
    """A server to be: its id and the GPUs it may see."""

    id: str  # "gpu0", "gpu0.mig1", "group0"
    gpus: tuple[Gpu, ...]


def choose(
    gpus: Sequence[Gpu], settings: GpuSettings, groups: Sequence[ServerGroup] = (), ours: Given | None = None
) -> list[PlannedServer]:
    """One server per chosen GPU and one per group; the GPUs of groups leave the pool.

    ``ours`` are the GPUs that may be used at all; without it, and for stand-ins, all.

    Raises ConfigError where a setting names a GPU that does not exist or is not ours, or one GPU twice.
    """
    if settings.use == "none":
        return []
    if ours is None or str(settings.use).startswith("simulated"):
        ours = Given(list(gpus), "")
    excluded = _matches(gpus, settings.exclude, "gpus.exclude")
    servers: list[PlannedServer] = []
    grouped: set[str] = set()
    for number, group in enumerate(groups):
        where = f"servers.group[{number}].gpus"
        members = _matches(gpus, group.gpus, where, ours)
        for gpu in members.values():
            if gpu.uuid in grouped or gpu.uuid in excluded:
                reason = "excluded" if gpu.uuid in excluded else "already in a group"
                raise ConfigError(f"{where}: {gpu.uuid} (index {gpu.index}) is {reason}; name it once.")
        grouped |= members.keys()
        servers.append(PlannedServer(f"group{number}", tuple(members.values())))
    named = settings.use if isinstance(settings.use, list) else None
    wanted = _matches(gpus, named, "gpus.use", ours) if named is not None else {g.uuid: g for g in ours.gpus}
    single = [gpu for uuid, gpu in wanted.items() if uuid not in excluded and uuid not in grouped]
    return [PlannedServer(_server_id(gpu), (gpu,)) for gpu in single] + servers


def _server_id(gpu: Gpu) -> str:
    return f"gpu{gpu.index}" if gpu.slice_index is None else f"gpu{gpu.index}.mig{gpu.slice_index}"


def _matches(gpus: Sequence[Gpu], names: Sequence[str | int], where: str, ours: Given | None = None) -> dict[str, Gpu]:
    """The GPUs meant by ``names``, once each. An index or a UUID of a card with slices means all its slices."""
    found: dict[str, Gpu] = {}
    for name in names:
        wanted = str(name)
        hits = [gpu for gpu in gpus if wanted in (gpu.uuid, gpu.parent_uuid, str(gpu.index))]
        if not hits:
            raise ConfigError(f"{where}: there is no GPU {wanted!r} here. GPUs found: {_words(gpus)}.")
        if ours is not None and not all(gpu in ours.gpus for gpu in hits):
            raise ConfigError(
                f"{where}: GPU {wanted!r} is here, but {ours.by} gives obatchd only these: {_words(ours.gpus)}. Name "
                "one of them, or start obatchd without that variable."
            )
        found.update((gpu.uuid, gpu) for gpu in hits)
    return found


def _words(gpus: Sequence[Gpu]) -> str:
    return ", ".join(f"{gpu.index} = {gpu.uuid} ({gpu.name})" for gpu in gpus) or "none"
