"""Work of the servers of a host, which the head gives them and takes from them."""

from __future__ import annotations

import attrs

from obatchd import log
from obatchd.cluster.host.head import Head
from obatchd.errors import ObatchError
from obatchd.gpucare.moving import CrashesHere

_log = log.get(__name__)
_ANSWER_S = 30.0  # beyond its patience


@attrs.define(eq=False)
class HeadMover:
    """Asks the head to move work. Without a session its servers have none. Implements
    :class:`obatchd.gpucare.moving.WorkMover`."""

    _head: Head
    crashes: CrashesHere = attrs.field(factory=CrashesHere, init=False)  # of servers here, as the head tells them

    async def vacate(self, server_id: str, patience_s: float, reason: str) -> None:
        if (session := self._head.session) is None:
            return
        try:
            await session.call(
                "head.vacate", type(None), patience_s + _ANSWER_S,
                server=server_id, patience_s=patience_s, reason=reason,
            )  # fmt: skip
        except ObatchError as error:  # it went away, which ends its work here, too
            _log.warning("vacate_failed", server=server_id, reason=error.message)

    def hold(self, reason: str) -> None:
        """The head sees the states of all servers, and judges for itself."""

    def release(self, reason: str) -> None:
        pass

    def listen_to_crashes(self, listener: CrashesHere) -> None:
        self.crashes = listener
