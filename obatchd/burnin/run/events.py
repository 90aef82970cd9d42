"""Events beside the load of a run: crashes of servers, XIDs, strangers, a changed driver, and who can watch."""

from __future__ import annotations

import time
from collections.abc import Mapping

import attrs

from obatchd.burnin.journal.recorder import Occupied, Seen
from obatchd.burnin.journal.records import Event, Prepared
from obatchd.burnin.run.ports import BatchLoad, RunHost, Tested
from obatchd.burnin.run.recording import Recording
from obatchd.jobs.model import Profile
from obatchd.words import counted

_STRAY = "End them (`nvidia-smi` shows them), so that they neither slow the GPU down nor keep its memory from the test."
_HOST_TROUBLE = "Reboot the host, then run it again; nothing was found against the GPU itself."


@attrs.define(eq=False)
class EventRecorder:
    """Writes new events on the servers of a run into a recording."""

    _host: RunHost
    _recording: Recording
    _servers: Mapping[str, Tested]  # of the run, by id
    _cards: Mapping[str, str]  # UUID of the card of each GPU or slice of the run
    _restarts: dict[str, int] = attrs.field(init=False)  # seen so far
    _profiles: dict[str, Profile] = attrs.field(factory=dict, init=False)
    _batch: dict[str, BatchLoad] = attrs.field(factory=dict, init=False)
    _blind: str = attrs.field(default="", init=False)
    _trouble: str = attrs.field(default="", init=False)

    @_restarts.default
    def _restarts_before(self) -> dict[str, int]:
        return {name: tested.server.restarts for name, tested in self._servers.items()}

    def gone(self, gpu: str) -> None:
        """A GPU of the run is not here any more."""
        text = "the GPU was there when the run began and has no server any more"
        self._recording.note(Event(time.time(), gpu, "gone", text, "inconclusive", "Look at nvidia-smi and dmesg."))

    def strangers(self) -> None:
        """Other people's processes on the GPUs when the load begins; in numbers, because a report names no user."""
        for server, gpus, _ in self._servers.values():
            held = sum(process.memory_bytes or 0 for process in server.foreign) / 2**30
            processes = counted(len(server.foreign), "process", "processes")
            text = f"as the load begins, {processes} of others hold {held:.1f} GiB on it"
            for gpu in gpus if server.foreign else ():
                self._recording.note(Event(time.time(), gpu, "stray_processes", text, "warn", _STRAY))

    def count_batch(self, span_s: float) -> None:
        """Batch work on the servers in the latest ``span_s``; their slots are sampled. Also a profile that is new."""
        recorder = self._recording.recorder
        for name, (server, gpus, _) in self._servers.items():
            now = self._host.batch_load(name)
            before = self._batch.get(name, now)
            self._batch[name] = now
            busy = min(now.in_slots, server.slots)
            requests = now.requests - before.requests
            for gpu in gpus:
                recorder.loaded(gpu, Occupied(busy * span_s, span_s if busy else 0.0, 0.0))
                recorder.answered(gpu, tokens=now.tokens - before.tokens, prompt_tokens=0, requests=requests)
                recorder.failed(gpu, now.failed - before.failed)
            loaded = server.loaded
            if loaded is not None and loaded != self._profiles.get(name):
                self._profiles[name] = loaded
                digest = self._host.model(loaded.model).digest
                self._recording.note(Prepared(
                    time.time(), name, loaded.model, loaded.context_length, server.slots, digest=digest,
                    ollama=server.version,
                ))  # fmt: skip

    def seen(self) -> dict[str, Seen]:
        """The GPUs of the run at this moment."""
        slots = {gpu: server.slots for server, gpus, _ in self._servers.values() for gpu in gpus}
        return {
            gpu: Seen(self._host.reading(gpu), self._host.slow_reading(card), slots.get(gpu, 0))
            for gpu, card in self._cards.items()
        }

    def look(self) -> None:
        """Write down everything new since the latest look."""
        now_s = time.time()
        for name, (server, gpus, _) in self._servers.items():
            for _ in range(server.restarts - self._restarts[name]):
                for gpu in gpus:
                    self._recording.watch.crashed(gpu, now_s)
                    self._recording.note(Event(now_s, gpu, "server_ended", f"its server ended: {server.reason}"))
            self._restarts[name] = server.restarts
            for gpu in gpus:
                self._recording.watch.ended(gpu, server.ended)
        for xid in self._host.new_xids():
            for gpu, card in self._cards.items():
                if card == xid.uuid:
                    self._recording.note(self._recording.watch.xid(gpu, xid))
        if (blind := self._host.monitoring_trouble()) != self._blind:
            self._blind = blind
            self._recording.note(Event(now_s, "", "monitoring", blind or "the GPUs can be watched again"))
        if (trouble := self._host.host_trouble()) and trouble != self._trouble:
            self._trouble = trouble
            self._recording.note(Event(now_s, "", "host_trouble", trouble, "inconclusive", _HOST_TROUBLE))
