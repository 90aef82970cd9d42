"""Which profile a server has loaded, and when it changes.

A server keeps its profile until nothing that may run needs it, or until another profile whose owners have had less
of the servers has waited ``max(switch_after_s, 10 × load time)``. So two models never fight for one server, and
nobody starves (docs/internals/queue.md, "Profiles").
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping

import attrs

from obatchd import log
from obatchd.dispatch.events import DispatchEvents, ModelStore
from obatchd.dispatch.interactive.waiting import Demand
from obatchd.dispatch.link import Link, Refused, Waker
from obatchd.dispatch.tuning.tuner import Tuner
from obatchd.errors import ModelError, ObatchError
from obatchd.jobs.model import Profile
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.tasks import TaskSet

_log = log.get(__name__)
_LOAD_TIMES_TO_WAIT = 10.0
_RETRY_S = 2.0
_REFUSED_S = 600.0  # a server that refused a profile is asked again after this: memory or disk may be free by then
_PREPARED_S = 60.0


@attrs.define(eq=False)
class ProfileSwitcher:
    """Decides and carries out loads."""

    _queue: Demand
    _links: Mapping[str, Link]  # the servers, by id
    _settings: Current[Settings]
    _models: ModelStore
    _events: DispatchEvents
    _waker: Waker
    _tasks: TaskSet
    tuner: Tuner | None = attrs.field(default=None, init=False)  # chooses slots; None where nobody does
    _unserved_since_s: dict[Profile, float] = attrs.field(factory=dict, init=False)

    def look(self) -> None:
        """Start the switches that are due."""
        for link in self._links.values():
            if link.loading is None and not link.server.ready:
                link.switching_to = None  # another server may have to do it
        waiting = self._queue.profiles()
        self._fail_unservable(waiting)
        self._age(waiting)
        now_s = time.monotonic()
        for link in self._links.values():
            if not link.server.ready or link.loading is not None or now_s < link.held_until_s:
                continue
            if link.switching_to is None and (wanted := self._wanted(link, waiting)) is not None:
                self._switch(link, wanted)
            if link.switching_to is not None and not link.offers:
                link.loading = self._tasks.start(self._load(link, link.switching_to), f"load-{link.server.id}")

    def _switch(self, link: Link, profile: Profile) -> None:
        """Empty a server for ``profile``; but only when its model is there, because a pull may take an hour."""
        if link.prepared.pop(profile, 0.0) < time.monotonic():
            link.preparing.add(profile)
            self._tasks.start(self._make_sure(link, profile), f"prepare-{link.server.id}")
            return
        link.switching_to = profile
        self._unserved_since_s.pop(profile, None)  # one server is enough to begin with
        _log.info(
            "profile_switch", server=link.server.id, old=link.server.loaded, new=profile, in_flight=len(link.offers)
        )

    def _age(self, waiting: list[Profile]) -> None:
        """Remember since when a profile waits that no server has or loads."""
        if not waiting:
            self._unserved_since_s = {}
            return
        now_s = time.monotonic()
        served = {link.server.loaded for link in self._links.values() if link.server.ready and not link.switching_to}
        served |= {link.switching_to for link in self._links.values()}
        since_s = self._unserved_since_s
        self._unserved_since_s = {each: since_s.get(each, now_s) for each in waiting if each not in served}

    def _wanted(self, link: Link, waiting: list[Profile]) -> Profile | None:
        """The profile to load instead of the present one, or None to stay."""
        loaded = link.server.loaded
        candidates = [p for p in waiting if p not in link.refused and p not in link.preparing and p != loaded]
        if not candidates:
            return None
        if loaded is not None and (self._queue.more_than(loaded, 0) or self._queue.has_suspects(loaded)):
            return self._contender(link, loaded, candidates)
        if link.offers:
            return None
        return next((profile for profile in candidates if self._worth_another_server(link, profile)), None)

    def _contender(self, link: Link, loaded: Profile, candidates: list[Profile]) -> Profile | None:
        """A profile with a stronger claim that has waited long enough."""
        claim, now_s = self._queue.claim(loaded)[:2], time.monotonic()
        since_s = ((profile, self._unserved_since_s.get(profile, float("inf"))) for profile in candidates)
        waited = (profile for profile, at_s in since_s if at_s <= now_s - self._patience_s(link, profile))
        return next((profile for profile in waited if self._queue.claim(profile)[:2] < claim), None)

    def _patience_s(self, link: Link, profile: Profile) -> float:
        """How long ``profile`` waits for a busy server."""
        dispatch = self._settings.value.dispatch
        if self._queue.is_interactive(profile):
            return dispatch.interactive_switch_after_s
        return max(dispatch.switch_after_s, _LOAD_TIMES_TO_WAIT * (link.server.load_s or 0.0))

    def _worth_another_server(self, link: Link, profile: Profile) -> bool:
        """Whether an idle server should load a profile of others: only if they need longer than a load."""
        serving = [
            other
            for other in self._links.values()
            if other is not link
            and not other.rests
            and (other.switching_to == profile or (other.server.ready and other.server.loaded == profile))
        ]
        if not serving:
            return True
        slots = sum(other.server.slots for other in serving)
        if any(other.loading is not None for other in serving):
            return self._queue.more_than(profile, slots)
        mean_s = sum(other.mean_s for other in serving) / len(serving)
        return self._queue.more_than(profile, int(slots * max(1.0, (link.server.load_s or 1.0) / max(mean_s, 1e-3))))

    async def _make_sure(self, link: Link, profile: Profile) -> None:
        async with self._attempt(link, profile):
            link.capabilities[profile.model] = await self._models.ensure(link.server.id, profile.model)
            link.prepared[profile] = time.monotonic() + _PREPARED_S
        link.preparing.discard(profile)
        self._waker.wake()

    async def _load(self, link: Link, profile: Profile) -> None:
        server, tuner = link.server, self.tuner
        async with self._attempt(link, profile):
            if tuner is not None:
                tuner.loads.prepare(link, profile)
            began_s = time.monotonic()
            try:
                await link.load(profile)
                link.work[profile.model].load.add_one(time.monotonic() - began_s)
            except ObatchError:
                if tuner is not None:
                    tuner.loads.not_loaded(link, profile)
                raise
            if tuner is not None:
                tuner.loads.loaded(link, profile)
            _log.info("profile_loaded", server=server.id, model=profile.model, context_length=profile.context_length,
                      slots=server.slots, load_s=server.load_s)  # fmt: skip
        link.loading = link.switching_to = None
        self._waker.wake()

    @contextlib.asynccontextmanager
    async def _attempt(self, link: Link, profile: Profile) -> AsyncIterator[None]:
        """Consequences when a server cannot be given a profile."""
        server = link.server
        try:
            yield
        except ModelError as error:
            _log.warning(
                "profile_refused", server=server.id, model=profile.model, code=error.code, reason=error.message
            )
            link.refused[profile] = Refused(error, time.monotonic() + _REFUSED_S)
            self._hinder(profile, f"{server.id}: {error.message}")
        except ObatchError as error:
            # The server is restarting or gone: the fleet deals with it, the profile is tried again.
            _log.warning("load_failed", server=server.id, model=profile.model, code=error.code, reason=error.message)
            self._hinder(profile, f"{server.id}: {error.message}")
            if server.ready:  # it says that it works, and refuses: enough of that restarts it
                server.fault(f"load failed: {error.message}")
            if link.switching_to == profile:
                # Meanwhile another one may load the profile.
                link.held_until_s = max(link.held_until_s, time.monotonic() + _RETRY_S)
            else:
                await asyncio.sleep(_RETRY_S)
        except Exception as error:  # noqa: BLE001 - a defect in one load must not stop the others
            _log.exception("load_failed", server=server.id, model=profile.model)
            server.fault(f"load failed: {error}")
            await asyncio.sleep(_RETRY_S)

    def _hinder(self, profile: Profile, reason: str) -> None:
        for lane in self._queue.lanes_of_profile(profile):
            self._events.hindered(lane.job, reason)

    def _fail_unservable(self, waiting: list[Profile]) -> None:
        """Fail requests nobody can serve. A server that is out of use is not waited for, one that restarts is."""
        if not any(link.refused for link in self._links.values()):
            return
        now_s = time.monotonic()
        for link in self._links.values():
            link.refused = {profile: refused for profile, refused in link.refused.items() if refused.until_s >= now_s}
        for profile in {profile for link in self._links.values() for profile in link.refused}.intersection(waiting):
            if any(profile not in link.refused and not link.server.out_of_use for link in self._links.values()):
                continue
            # The next job may try again: the model may have been pulled by then.
            refused = [link.refused.pop(profile) for link in self._links.values() if profile in link.refused]
            waiting.remove(profile)
            self._events.unservable(profile, refused[-1].error)
