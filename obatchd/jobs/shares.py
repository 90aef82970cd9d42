"""Each owner's use of the servers, in slot-seconds."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

_FIRST_ESTIMATE_S = 1.0


class Share(msgspec.Struct):
    """One owner's use."""

    used_s: float
    mean_s: float = _FIRST_ESTIMATE_S  # of a request

    def charge(self, used_s: float, charge_s: float) -> None:
        """The slot time that a request really used replaces the charge made in advance."""
        self.used_s += used_s - charge_s
        self.mean_s += 0.1 * (used_s - self.mean_s)


class Shares:
    """The accounts of all owners, by uid."""

    def __init__(self) -> None:
        self._of: dict[int, Share] = {}

    def of(self, owner: int) -> Share:
        """The account of ``owner``; a new one begins with the least that anybody has used."""
        share = self._of.get(owner)
        if share is None:
            share = self._of[owner] = Share(min((s.used_s for s in self._of.values()), default=0.0))
        return share

    def least(self, owners: Iterable[int]) -> int:
        """The owner who has used least."""
        return min(owners, key=lambda owner: self.of(owner).used_s)

    def join(self, owner: int, active: Collection[int]) -> None:
        """An owner who comes back beside those that are ``active`` does not collect on the time he was away."""
        if active:
            share = self.of(owner)
            share.used_s = max(share.used_s, min(self.of(other).used_s for other in active))
