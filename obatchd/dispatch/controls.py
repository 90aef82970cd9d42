"""A server that crashed has to answer one token before it gets anything again: the control of every verdict.

Where it does not, the server is at fault: it gets a strike and is restarted, and the start limit of its life decides
how often. Where it does, its life begins anew: crashes that requests are to blame for bring no server to FAILED.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import attrs

from obatchd import log
from obatchd.dispatch.link import Link, Waker
from obatchd.dispatch.trials import Trials
from obatchd.errors import ModelError, ObatchError
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.tasks import TaskSet

_log = log.get(__name__)
_PAUSE_S = 1.0  # by then the state of a server that is to be restarted says so


@attrs.define(eq=False)
class Controls:
    """The controls of all servers."""

    _links: Mapping[str, Link]  # the servers, by id
    _settings: Current[Settings]
    _trials: Trials
    _waker: Waker
    _tasks: TaskSet

    def look(self) -> None:
        """Begin the controls that are due."""
        for link in self._links.values():
            if not link.owes_control:
                continue
            if link.server.out_of_use or (link.server.up and not link.server.ready):
                self._trials.not_controlled(link)  # nobody waits for it: what crashed it is tried elsewhere
            elif self._due(link):
                link.loading = self._tasks.start(self._control(link), f"control-{link.server.id}")

    @staticmethod
    def _due(link: Link) -> bool:
        free = link.loading is None and link.switching_to is None and not link.offers
        return link.server.ready and free and time.monotonic() >= link.held_until_s

    async def _control(self, link: Link) -> None:
        server = link.server
        try:
            # Its runner may be gone, and loading it takes longer than one token may.
            profile, server.loaded = server.loaded or link.crashed_profile, None
            if profile is not None:
                await link.load(profile)
                await server.one_token(self._settings.value.watchdog.probe_s)
        except ModelError:  # it can have it no more, for which the requests are not to blame: it is loaded as any other
            link.owes_control = False
            self._trials.not_controlled(link)
        except ObatchError as error:
            if server.ready:  # else it ended meanwhile, and is asked when it is back
                await self._failed(link, error)
        else:
            _log.info("control_passed", server=server.id, gpu=server.gpu_label)
            link.owes_control, link.failures = False, 0
            server.progress()
            self._trials.controlled(link)
        finally:
            link.loading = None
            self._waker.wake()

    async def _failed(self, link: Link, error: ObatchError) -> None:
        reason = f"after a crash it does not answer one token: {error.message}"
        _log.warning("control_failed", server=link.server.id, gpu=link.server.gpu_label, code=error.code, reason=reason)
        self._trials.not_controlled(link)
        link.server.fault(reason)
        link.server.broken(reason)
        await asyncio.sleep(_PAUSE_S)
