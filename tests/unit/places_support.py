"""Where families are, for tests of the choice between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from obatchd.jobs.places import AtWork, Kin, Places


def places_at(free: int, warm: Mapping[str, list[Kin]], at_work: Mapping[str, Iterable[Kin]]) -> Places:
    """So many slots are free; by server the families that its free slots computed last, and those at work."""
    counted = AtWork()
    for server, families in at_work.items():
        for kin in families:
            counted.came(server, *kin)
    return Places(free, {server: list(kin) for server, kin in warm.items()}, counted)
