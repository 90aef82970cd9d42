"""Tells the head what the cards of this host do, and hears of those of other hosts."""

from __future__ import annotations

import asyncio

import attrs

from obatchd import log
from obatchd.cluster.host.head import Head
from obatchd.errors import ObatchError
from obatchd.gpucare.siblings import EXCHANGE_S, Sibling
from obatchd.gpucare.watch import GpuWatch

_log = log.get(__name__)
_ANSWER_S = 10.0


@attrs.define(eq=False)
class SiblingExchange:
    """One for a host. Without a head, or with an older one, its cards are judged beside each other alone."""

    _head: Head
    _watch: GpuWatch

    async def run(self) -> None:
        """Exchange for ever."""
        while True:
            await self.exchange()
            await asyncio.sleep(EXCHANGE_S)

    async def exchange(self) -> None:
        """Once, where there is a session."""
        if (session := self._head.session) is None:
            return
        try:
            own = self._watch.siblings()
            self._watch.elsewhere.heard(await session.call("head.siblings", list[Sibling], _ANSWER_S, own=own))
        except ObatchError as error:
            _log.debug("siblings_not_heard", reason=error.message)
