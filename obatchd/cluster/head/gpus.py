"""The GPUs of joined hosts, as a host tells of them and is told what to do with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from obatchd.cluster.head.asking import ask, lied
from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.head.trust import lie
from obatchd.documents.gpus import GpuDetails, GpuEntry, GpuEventEntry, HostProbe, Released
from obatchd.documents.history import GpuColumns, GpuHistory

_LOOK_S = 10.0  # for what is shown of many hosts at once
_COMMAND_S = 30.0
_NO_READING = dict.fromkeys((
    "utilisation_percent", "memory_used_bytes", "temp_c", "memory_temp_c", "power_w", "power_limit_w", "clock_mhz",
    "slowed",
))  # fmt: skip
E = TypeVar("E", bound=GpuEntry)


def probe_of(host: JoinedHost) -> HostProbe | None:
    """The state of a host's GPUs as a whole; None: it has told nothing yet."""
    if host.news is None:
        return None
    told, away = host.news.gpus, host.session is None
    return HostProbe(
        host.name, not away, host.reason if away else "", told.state, told.message, told.host, told.kernel_log
    )


def cards_of(host: JoinedHost) -> list[GpuEntry]:
    """Its GPUs, as it told them last; those of one that is away are not known to be well."""
    if host.news is None:
        return []
    cards = [_here(host, card) for card in host.news.gpus.gpus]
    if host.session is not None:
        return cards
    away = f"host {host.name} is away: {host.reason}"
    return [
        msgspec.structs.replace(
            card,
            health=card.health if card.quarantine else "unknown",
            reason=card.reason if card.quarantine else away,
            action=card.action if card.quarantine else "",
            asleep=msgspec.UNSET,
            **_NO_READING,
        )
        for card in cards
    ]


def _here(host: JoinedHost, card: E) -> E:
    """A card of a host as the head shows it."""
    return msgspec.structs.replace(card, host=host.name, servers=[f"{host.name}.{name}" for name in card.servers])


async def details(host: JoinedHost, uuid: str) -> GpuDetails:
    """One card; raises as :func:`obatchd.cluster.head.asking.ask`, as all below."""
    found = _here(host, await ask(host, "gpus.one", GpuDetails, _LOOK_S, name=uuid))
    return msgspec.structs.replace(found, events=[_event(host, event) for event in found.events])


async def events(host: JoinedHost, uuid: str | None, limit: int) -> list[GpuEventEntry]:
    """The latest ones, oldest first."""
    found = await ask(host, "gpus.events", list[GpuEventEntry], _LOOK_S, name=uuid, limit=limit)
    return [_event(host, event) for event in found]


def _event(host: JoinedHost, event: GpuEventEntry) -> GpuEventEntry:
    return msgspec.structs.replace(event, host=host.name)


async def history(host: JoinedHost, since_s: float, until_s: float, points: int, uuid: str | None) -> GpuHistory:
    """Readings and events over some time; seconds since the epoch."""
    asked: dict[str, Any] = {"since_s": since_s, "until_s": until_s, "points": points, "name": uuid}
    found = await ask(host, "gpus.history", GpuHistory, _LOOK_S, **asked)
    told = (getattr(columns, name) for columns in found.gpus for name in GpuColumns.__struct_fields__)
    if any(isinstance(column, list) and len(column) != len(found.at_s) for column in told):
        raise lied(host, lie("its history has columns that are not as long as their time"))
    found.gpus = [msgspec.structs.replace(columns, host=host.name) for columns in found.gpus]
    found.events = [_event(host, event) for event in found.events]
    return found


def on_the_grid(found: GpuHistory, at_s: list[int]) -> list[GpuColumns]:
    """Its columns with one value for each of these steps; null where it has none."""
    if found.at_s == at_s:
        return found.gpus
    places: Mapping[int, int] = {second: place for place, second in enumerate(found.at_s)}
    rows = [places.get(second) for second in at_s]

    def moved(value: object) -> object:
        return [None if row is None else value[row] for row in rows] if isinstance(value, list) else value

    return [
        msgspec.structs.replace(
            columns, **{name: moved(getattr(columns, name)) for name in GpuColumns.__struct_fields__}
        )
        for columns in found.gpus
    ]


async def command(host: JoinedHost, name: str, uuid: str, **given: Any) -> GpuEntry:
    """Have a host do something with a card: ``quarantine``, ``lend``, ``take_back`` or ``share``."""
    return _here(host, await ask(host, f"gpus.{name}", GpuEntry, _COMMAND_S, name=uuid, **given))


async def release(host: JoinedHost, uuid: str) -> Released:
    """Have a host end a quarantine, or a known warning."""
    return msgspec.structs.replace(await ask(host, "gpus.release", Released, _COMMAND_S, name=uuid), host=host.name)
