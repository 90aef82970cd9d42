"""Servers of joined hosts in few lines: one for each host, or for many that are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from obatchd.cli.command import Document, clean
from obatchd.cli.views.text import NOTHING, number, table
from obatchd.words import counted

_HEADINGS = (
    "=HOST", "STATE", ">READY", "~MODEL", ">UTIL", ">MEMORY GiB", "?>TEMP", "?>POWER", ">BUSY", ">TOKENS/S",
    "?>RESTARTS",
)  # fmt: skip
_HERE = "this host"


class _Host(NamedTuple):
    """A host with its servers."""

    name: str
    state: str
    servers: list[Document]

    @property
    def is_well(self) -> bool:
        return self.state == "here" and all(server["state"] == "ready" for server in self.servers)


def host_table(servers: Sequence[Document], hosts: Sequence[Document], room: int) -> list[str]:
    """A line for each host and one for all of them; where that is more than ``room`` lines, those that are well share
    one."""
    found = [_Host(host["name"], host["state"], _of(servers, host["name"])) for host in hosts]
    if own := [server for server in servers if not server.get("host")]:
        found.insert(0, _Host(_HERE, "here", own))
    rows = [_row(host.name, host.state, host.servers) for host in found]
    if len(rows) + 2 > room:
        ill = [host for host in found if not host.is_well]
        well = [server for host in found if host.is_well for server in host.servers]
        rows = [_row(host.name, host.state, host.servers) for host in ill[: max(room - 3, 1)]]
        if hidden := ill[max(room - 3, 1) :]:
            rows.append(_row(f"{len(hidden)} more", "…", [server for host in hidden for server in host.servers]))
        rows.append(_row(counted(len(found) - len(ill), "host"), "here", well))
    return table(_HEADINGS, [*rows, _row("all", "", list(servers))])


def not_ready(servers: Sequence[Document], told: Sequence[str], room: int) -> list[str]:
    """Why servers are not ready, in at most ``room`` lines, unless that was told."""
    notes = [
        f"  {server['id']} {server['state']}: {server['reason']}"
        for server in servers
        if server["state"] != "ready" and not any(server["reason"] in reason for reason in told)
    ]
    if len(notes) > room:
        notes = [*notes[: room - 1], f"  … and {len(notes) - room + 1} more: obatchctl servers"]
    return [clean(note) for note in notes]


def _of(servers: Sequence[Document], host: str) -> list[Document]:
    return [server for server in servers if server.get("host") == host]


def _row(name: str, state: str, servers: list[Document]) -> list[object]:
    gpus = [gpu for server in servers for gpu in server["gpus"]]

    def known(field: str, combine: Callable[[list[Any]], Any]) -> Any:
        values = [gpu[field] for gpu in gpus if gpu[field] is not None]
        return combine(values) if values else None

    used, whole = (known(field, sum) for field in ("memory_used_bytes", "memory_total_bytes"))
    ready = sum(server["state"] == "ready" for server in servers)
    busy, slots = (sum(server[field] or 0 for server in servers) for field in ("in_flight", "slots"))
    models = dict.fromkeys(server["loaded"]["model"] for server in servers if server["loaded"])
    return [
        name, state, f"{ready}/{len(servers)}", ", ".join(models) or NOTHING,
        number(known("utilisation_percent", lambda values: sum(values) / len(values)), " %"),
        "/".join(NOTHING if value is None else f"{value / 1024**3:.0f}" for value in (used, whole)),
        number(known("temp_c", max), " °C"), number(known("power_w", sum), " W"), f"{busy}/{slots}",
        number(sum(server["tokens_per_s"] or 0.0 for server in servers), digits=1),
        sum(server["restarts"] for server in servers),
    ]  # fmt: skip
