"""The models of a whole fleet, as those of one Ollama."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
from attrs import define
from msgspec import UNSET

from obatchd.documents.native import Details, RunningModel, RunningModels, StoredModel, StoredModels
from obatchd.errors import ApiError, ServerError
from obatchd.jobs.model import Profile
from obatchd.model_names import canonical, folded
from obatchd.servers.fleet import Fleet
from obatchd.servers.models import ModelKeeper
from obatchd.servers.server import ServerFace

# What Ollama says of a model that it keeps for good: the longest duration of Go's.
_FOR_GOOD = timedelta(days=292 * 365)
_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]*([:/@][A-Za-z0-9_.-]+)*")
_FRACTION = re.compile(r"[.][0-9]+")
_UNKNOWN = StoredModel(  # whose store tells nothing; the ollama command cuts twelve digits off a digest
    name="", model="", modified_at="", size=0, digest="0" * 64,
    details=Details(parent_model="", format="", family="", families=None, parameter_size="", quantization_level=""),
)  # fmt: skip


@define(eq=False)
class FleetModels:
    """Implements :class:`obatchd.control.programs.NativeModels`, which says what each method does.

    Servers are asked for what they have, and never for what they have loaded: up to 0.32.3 an Ollama may crash over
    ``/api/ps`` (ollama 17376), and programs ask often.
    """

    _models: ModelKeeper
    _fleet: Fleet

    def version(self) -> str:
        servers = self._fleet.all.values()
        versions = [server.version for server in servers if server.version and server.up]
        if not versions:
            raise ApiError("no server is running: obatchctl status shows why", status=503, code="no_server")
        return min(versions, key=_order)

    async def stored(self) -> StoredModels:
        """Of one name in several stores the first one counts, which is that of the managed servers."""
        found: dict[str, StoredModel] = {}
        for _, entry in await self._models.stored():
            found.setdefault(folded(entry.model), entry)
        return StoredModels(sorted(found.values(), key=_changed_s, reverse=True))

    async def running(self) -> RunningModels:
        holders: dict[Profile, list[ServerFace]] = {}
        for server in self._fleet.all.values():
            if (profile := server.loaded) is not None and server.up:
                key = Profile(canonical(profile.model), profile.context_length)
                holders.setdefault(key, []).append(server)
        if not holders:
            return RunningModels([])
        entries = {(store, folded(entry.model)): entry for store, entry in await self._models.stored()}
        return RunningModels([_running(profile, servers, entries) for profile, servers in holders.items()])

    async def show(self, model: str, *, verbose: bool) -> dict[str, msgspec.Raw]:
        if not _NAME.fullmatch(model):
            raise ApiError(f"invalid model name {model[:100]!r}", code="invalid_value", param="model")
        try:
            shown = await self._models.show(model, verbose=verbose)
        except ServerError as error:
            raise ApiError(error.message, status=503, code=error.code, final=False) from None
        if shown is None:
            raise _not_found(model)
        return shown

    async def check(self, model: str) -> None:
        if self._models.info(model) is not None:  # of one that has been used lately nobody is asked
            return
        await self.show(model, verbose=False)
        if folded(model) not in {folded(entry.model) for _, entry in await self._models.stored()}:
            raise _not_found(model)  # it would be pulled


def _not_found(model: str) -> ApiError:
    words = f"model '{model}' not found; an administrator can:  obatchctl models pull {shlex.quote(model)}"
    return ApiError(words, status=404, code="model_not_found", param="model")


def _order(version: str) -> tuple[list[int], bool, str]:
    """For sorting: numbers as such, and what comes before a version (0.33.0-rc2) before it."""
    number, dash, rest = version.partition("-")
    return [int(part) for part in re.findall("[0-9]{1,9}", number)], not dash, rest


def _changed_s(model: StoredModel) -> float:
    """When a model changed, as Ollama sorts: in whole seconds since the epoch; 0: nobody tells."""
    try:
        at = datetime.fromisoformat(_FRACTION.sub("", model.modified_at).replace("Z", "+00:00"))
    except ValueError:
        return 0.0
    return at.timestamp()


def _running(profile: Profile, servers: list[ServerFace], entries: dict[tuple[str, str], StoredModel]) -> RunningModel:
    """One entry for all copies. Where nobody tells how much memory one takes, its file does, as if it were on a GPU."""
    found = [entries.get((server.store, folded(profile.model)), _UNKNOWN) for server in servers]
    told = [server.model_vram_bytes for server in servers]
    return RunningModel(
        name=profile.model,
        model=profile.model,
        size=sum(vram or entry.size for vram, entry in zip(told, found, strict=True)),
        digest=found[0].digest,
        details=msgspec.structs.replace(found[0].details, context_length=UNSET, embedding_length=UNSET),  # as there
        expires_at=max(_ends(servers)).isoformat().replace("+00:00", "Z"),
        size_vram=sum(entry.size if vram is None else vram for vram, entry in zip(told, found, strict=True)),
        context_length=profile.context_length,
    )


def _ends(servers: list[ServerFace]) -> Iterator[datetime]:
    """When each server unloads its model, if nobody asks for it."""
    now = datetime.now(UTC)
    for server in servers:
        left_s = server.unloads_in_s
        yield now + (_FOR_GOOD if left_s is None else timedelta(seconds=left_s))
