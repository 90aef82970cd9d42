"""How a joined host is, in words for the status and for doctor."""

from __future__ import annotations

import shlex

import msgspec

from obatchd.cluster.head.asking import ask
from obatchd.cluster.head.joined import JoinedHost
from obatchd.documents.hosts import Finding, HostFindings
from obatchd.documents.status import HostBrief
from obatchd.errors import ObatchError
from obatchd.times import instant, skew

_EXAMINED_S = 50.0  # its checks may take long where something hangs there


def brief(host: JoinedHost) -> HostBrief:
    """One line of the status."""
    reason = host.reason if host.session is None else host.leaving or host.drained
    version = host.hello.version if host.hello is not None else ""
    return HostBrief(host.name, host.state, reason, instant(host.since_s), version)


def reasons_of(host: JoinedHost) -> list[str]:
    """Why somebody should look at it."""
    if host.session is None:
        return [] if host.leaving else [f"host {host.name} is away: {host.reason}"]
    if host.news is None:
        return []
    told = host.news.gpus
    missed = told.state == "unknown" or (told.state == "absent" and told.gpus)
    found = [told.message] if missed else []
    found += [told.host.message] if told.host is not None else []
    return [f"host {host.name}: {words}" for words in found]


def notices_of(host: JoinedHost) -> list[str]:
    """What is worth knowing, and hinders nothing."""
    if host.session is None:
        return [f"host {host.name}: {host.reason}"] if host.leaving else []
    found = [f"it is about to go: {host.leaving}"] if host.leaving else []
    found += [f"it gets no work: {host.drained}"] if host.drained else []
    differs = skew(host.skew_s)
    found += [f"{differs}; let it follow a time server (timedatectl)"] if differs else []
    found += host.news.notices if host.news is not None else []
    return [f"host {host.name}: {words}" for words in found]


async def findings_of(host: JoinedHost) -> HostFindings:
    """What it finds on its own machine; that it does not answer is a finding, too."""
    try:
        found = await ask(host, "doctor.examine", list[Finding], _EXAMINED_S)
    except ObatchError as error:
        return HostFindings(host.name, [Finding("warn", "doctor", error.message, "obatchctl hosts")])
    return HostFindings(host.name, [_from_here(host.name, one) for one in found])


def _from_here(name: str, found: Finding) -> Finding:
    """With a command that is typed at the head, where the host's own is one word: only a shell of the host reads it."""
    if not found.next_command:
        return found
    return msgspec.structs.replace(found, next_command=shlex.join(("ssh", name, found.next_command)))
