"""Dials the head for ever: a host without its head waits for it, with its servers and models."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol

import attrs

from obatchd import log
from obatchd.cluster.host.head import Head
from obatchd.cluster.host.visit import HostParts, Identity, Visit
from obatchd.cluster.host.way import NOT_JOINED, Connector
from obatchd.errors import ClusterError

_log = log.get(__name__)
# A try and a pause together are less than 10 s: so soon after what was wrong is over a host is back.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 4.0
_REFUSED_PAUSE_S = 60.0  # after a refusal that another try alone will not change
_CONNECT_S = 5.0
_STEADY_S = 5.0  # a session that lasted for so long is followed by another at once


class DialListener(Protocol):
    """Decides what follows when the head does not know this host; :class:`obatchd.daemon.host_life.HostDaemon`."""

    def disowned(self) -> None:
        """The credential of this host is good for nothing; told in the log."""


@attrs.define(eq=False)
class Dialer:
    """Connects, visits, and does so again."""

    _connector: Connector
    _identity: Identity
    _parts: HostParts
    _head: Head
    _listener: DialListener
    trouble: str = attrs.field(default="it was not reached yet", init=False)  # why the head is away; empty: it is here
    _pause_s: float = attrs.field(default=_FIRST_PAUSE_S, init=False)

    async def run(self) -> None:
        """Dial until cancelled, which ends the session."""
        while True:
            began_s = time.monotonic()
            visit = Visit(self._identity, self._parts, self._head)
            final = await self._try(visit)
            if visit.entered and time.monotonic() - began_s > _STEADY_S:
                self._pause_s = _FIRST_PAUSE_S
            pause_s = _REFUSED_PAUSE_S if final else self._pause_s
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # hosts of one head do not all come at once
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    async def _try(self, visit: Visit) -> bool:
        """One connection and its session; whether the head refused this host for good."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                socket = await self._connector.connect()
        except ClusterError as error:
            self._refused(error.message)
            if error.code == NOT_JOINED:
                self._listener.disowned()
            return True
        except TimeoutError:
            self._lost(f"{self._connector.address} does not answer within {_CONNECT_S:g} s")
            return False
        except ConnectionError as error:
            self._lost(str(error))
            return False
        reason = await visit.run(socket)
        if visit.refused is not None and visit.refused.final:
            self._refused(visit.refused.message)
            return True
        if visit.entered:
            self.trouble = ""  # and is told anew
        self._lost(reason)
        return False

    def _refused(self, words: str) -> None:
        if words != self.trouble:
            _log.error("head_refuses", head=self._connector.address, reason=words)
        self.trouble = words

    def _lost(self, words: str) -> None:
        if words != self.trouble:
            _log.warning("head_away", head=self._connector.address, reason=words)
        self.trouble = words
