"""From an operator's wish to the hosts of a run, each with the GPUs that are meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from obatchd.burnin.journal.records import Unit
from obatchd.burnin.run.plan import Asked
from obatchd.cluster.head.burnin.files import Part
from obatchd.cluster.head.joined import JoinedHost
from obatchd.errors import ConfigError
from obatchd.servers.states import ServerState

ALL = "all"


def parts(wanted: Asked, hosts: Mapping[str, JoinedHost], own: Sequence[Unit]) -> list[Part]:
    """The parts of a run; none where only the head's own machine is meant, whose GPUs are ``own``.

    Raises ConfigError where a host or GPU is not known, or jobs are to be the load or to be kept away.
    """
    chosen = _hosts(wanted, hosts)
    if not chosen:
        return []
    if wanted.with_jobs or wanted.exclusive:
        words = (
            "--with-jobs is for the head's own machine: leave it out, or leave out --hosts"
            if wanted.with_jobs
            else "--exclusive is for the head's own machine: leave it out, and keep jobs from the hosts by "
            "`obatchctl hosts drain HOST` until the run is over"
        )
        raise ConfigError(words, code="usage")
    asked = msgspec.structs.replace(wanted, hosts=[], gpus=[])
    if not wanted.gpus:
        found = [Part(host.name, _usual(host), asked) for host in chosen]
        return found + ([Part("", list(own), asked)] if own and wanted.hosts == [ALL] else [])
    of_hosts = {host.name: list(_units(host)) for host in chosen}
    if not wanted.hosts or wanted.hosts == [ALL]:
        of_hosts[""] = list(own)
    meant = {host: [u for u in units if _means(wanted.gpus, host, u)] for host, units in of_hosts.items()}
    for name in wanted.gpus:
        if not any(_means([name], host, unit) for host, units in meant.items() for unit in units):
            known = ", ".join(f"{host}.{u.server}" if host else u.server for host, us in of_hosts.items() for u in us)
            raise ConfigError(
                f"no GPU {name!r} with a server on these hosts; there are: {known or 'none'}", code="usage"
            )
    return [
        Part(host, units, msgspec.structs.replace(asked, gpus=[unit.uuid for unit in units]))
        for host, units in meant.items()
        if units
    ]


def _hosts(wanted: Asked, hosts: Mapping[str, JoinedHost]) -> list[JoinedHost]:
    """Those named; without names, those whose GPUs are named."""
    if wanted.hosts and not hosts:
        raise ConfigError("no host has joined yet; the code for one:  obatchctl hosts code", code="usage")
    if wanted.hosts == [ALL]:
        return [host for host in hosts.values() if host.state != "leaving"]
    if unknown := [name for name in wanted.hosts if name not in hosts]:
        known = ", ".join(hosts) or "none"
        raise ConfigError(f"no host {unknown[0]!r} has joined; there are: {known}, or all", code="usage")
    if wanted.hosts:
        return [hosts[name] for name in dict.fromkeys(wanted.hosts)]
    # An index alone, or a server of the head's own machine, is a GPU there.
    full = [name for name in wanted.gpus if not name.isdecimal()]
    return [host for host in hosts.values() if any(_means(full, host.name, unit, full=True) for unit in _units(host))]


def _units(host: JoinedHost) -> Iterator[Unit]:
    for server in host.servers.values():
        for gpu in server.gpus:
            yield Unit(gpu.uuid, gpu.name, gpu.index, server.local_id, gpu.as_card())


def _usual(host: JoinedHost) -> list[Unit]:
    """Those that the host takes where none is named."""
    out = {s.local_id for s in host.servers.values() if s.state is ServerState.QUARANTINED}
    return [unit for unit in _units(host) if unit.server not in out]


def _means(names: Sequence[str], host: str, unit: Unit, *, full: bool = False) -> bool:
    """Whether a GPU is among those named: by UUID, or by its place, which without a host is one of every host."""
    known = {unit.uuid}
    if host:
        known |= {f"{host}.{unit.server}", f"{host}/{unit.index}"}
    if not full or not host:
        known |= {unit.server, str(unit.index)}
    return any(name in known for name in names)
