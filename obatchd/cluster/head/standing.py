"""How a joined host is, in words for the status and for doctor."""

from __future__ import annotations

from obatchd.cluster.head.joined import JoinedHost
from obatchd.documents.status import HostBrief
from obatchd.times import instant, skew


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
