"""The records of a run over several hosts: each host keeps its own, and they are put beside each other."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from obatchd.burnin.journal.records import Begun, Bucket, Gap, Prepared, Record, Tracks

_LEAST_SKEW_S = 2.0  # a smaller difference between two clocks is the way of a message


class HostPart(NamedTuple):
    """One host of a run: what it has recorded, beginning with :class:`Begun`; nothing where its GPUs are not known."""

    host: str  # empty: the machine of the head
    state: str  # waiting, preparing, loading; completed, stopped, failed; not_begun, lost
    reason: str  # why it is not, or was not, as it should be
    records: Sequence[Record] = ()


def of_host(records: Sequence[Record], host: str, ahead_s: float = 0.0) -> list[Record]:
    """Records of a host as those of a run over several: servers by their full ids, times by the head's clock.

    ``ahead_s``: by how much the host's clock is ahead of the head's. Tracks, which only the host goes on from, are left
    out.
    """
    late_s = -ahead_s if abs(ahead_s) >= _LEAST_SKEW_S else 0.0
    return [_moved(_named(record, host), late_s) for record in records if not isinstance(record, Tracks)]


def _named(record: Record, host: str) -> Record:
    if not host:
        return record
    if isinstance(record, Begun):
        units = [msgspec.structs.replace(u, server=f"{host}.{u.server}", host=host) for u in record.units]
        return msgspec.structs.replace(record, units=units)
    if isinstance(record, Prepared):
        return msgspec.structs.replace(record, server=f"{host}.{record.server}")
    return record


def _moved(record: Record, by_s: float) -> Record:
    if not by_s:
        return record
    if isinstance(record, Gap):
        return msgspec.structs.replace(record, from_s=record.from_s + by_s, until_s=record.until_s + by_s)
    return msgspec.structs.replace(record, at_s=record.at_s + by_s)


def beside(hosts: Sequence[Sequence[Bucket]]) -> tuple[list[float], list[list[Bucket]]]:
    """Times that the buckets of all hosts share, and for each host a bucket at each of them, empty where it has none.

    The times are those of the host with the most buckets, and beyond its last one those of the host that went on.
    """
    times: list[float] = []
    for buckets in sorted(hosts, key=len, reverse=True):
        ends = [bucket.at_s for bucket in buckets]
        times += ends[bisect.bisect_right(ends, times[-1]) if times else 0 :]
    return times, [_at(times, buckets) for buckets in hosts]


def _at(times: Sequence[float], buckets: Sequence[Bucket]) -> list[Bucket]:
    """For each time the bucket that it lies in, or that ended just before it."""
    ends = [bucket.at_s for bucket in buckets]
    found = []
    for at_s in times:
        place = bisect.bisect_left(ends, at_s)
        near = [b for b in buckets[max(0, place - 1) : place + 1] if abs(b.at_s - at_s) <= b.span_s]
        found.append(min(near, key=lambda bucket: abs(bucket.at_s - at_s), default=Bucket(at_s, 1.0, {})))
    return found
