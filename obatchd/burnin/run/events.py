"""Events beside the load of a run: crashes of servers, XIDs, strangers, a changed driver, and who can watch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from obatchd.burnin.journal.recorder import Occupied
from obatchd.burnin.journal.records import Event, Prepared
from obatchd.burnin.run.ports import BatchLoad, RunHost, RunServer
from obatchd.burnin.run.recording import Recording
from obatchd.jobs.model import Profile
from obatchd.ollama.api import Generated

_STRAY = "End them (`nvidia-smi` shows them), so that they neither slow the GPU down nor keep its memory from the test."
_HOST_TROUBLE = "Reboot the host, then run it again; nothing was found against the GPU itself."


class EventRecorder:
    """Writes new events on the servers of a run into a recording.

    Args:
        servers: of the run, by id.
        gpus_of: UUIDs of their GPUs, by server id.
        cards: UUID of the card of each GPU or slice.
    """

    def __init__(
        self,
        host: RunHost,
        recording: Recording,
        servers: Mapping[str, RunServer],
        gpus_of: Mapping[str, Sequence[str]],
        cards: Mapping[str, str],
    ) -> None:
        self._host = host
        self._recording = recording
        self._servers = servers
        self._gpus_of = gpus_of
        self._cards = cards
        self._restarts = {name: server.restarts for name, server in servers.items()}
        self._profiles: dict[str, Profile] = {}
        self._batch: dict[str, BatchLoad] = {}
        self._blind = self._trouble = ""

    def gone(self, gpu: str) -> None:
        """A GPU of the run is not here any more."""
        text = "the GPU was there when the run began and has no server any more"
        self._recording.note(Event(time.time(), gpu, "gone", text, "inconclusive", "Look at nvidia-smi and dmesg."))

    def strangers(self) -> None:
        """Other people's processes on the GPUs when the load begins; in numbers, because a report names no user."""
        for name, server in self._servers.items():
            held = sum(process.memory_bytes or 0 for process in server.foreign) / 2**30
            text = f"{len(server.foreign)} processes of others are on it as the load begins and hold {held:.1f} GiB"
            for gpu in self._gpus_of[name] if server.foreign else ():
                self._recording.note(Event(time.time(), gpu, "stray_processes", text, "warn", _STRAY))

    def answered(self, server: str, answer: Generated) -> None:
        """The load of a server had an answer."""
        for gpu in self._gpus_of[server]:
            self._recording.recorder.answered(gpu, tokens=answer.eval_count, prompt_tokens=answer.prompt_eval_count)

    def request_failed(self, server: str) -> None:
        """A request of the load of a server failed."""
        for gpu in self._gpus_of[server]:
            self._recording.recorder.failed(gpu)

    def count_batch(self, name: str, span_s: float) -> None:
        """Batch work on a server in the latest ``span_s``; its slots are sampled."""
        now = self._host.batch_load(name)
        before = self._batch.get(name, now)
        self._batch[name] = now
        busy = min(now.in_slots, self._servers[name].slots)
        recorder = self._recording.recorder
        for gpu in self._gpus_of[name]:
            recorder.loaded(gpu, Occupied(busy * span_s, span_s if busy else 0.0, 0.0))
            requests = now.requests - before.requests
            recorder.answered(gpu, tokens=now.tokens - before.tokens, prompt_tokens=0, requests=requests)
            recorder.failed(gpu, now.failed - before.failed)
        self._note_profile(name)

    def _note_profile(self, name: str) -> None:
        """The profile that batch work has loaded on a server, whenever that changes."""
        server = self._servers[name]
        loaded = server.loaded
        if loaded is not None and loaded != self._profiles.get(name):
            self._profiles[name] = loaded
            digest = self._host.model(loaded.model).digest
            self._recording.note(Prepared(
                time.time(), name, loaded.model, loaded.context_length, server.slots, digest=digest,
                ollama=server.version,
            ))  # fmt: skip

    def look(self) -> None:
        """Write down everything new since the latest look."""
        now_s = time.time()
        for name, server in self._servers.items():
            for _ in range(server.restarts - self._restarts[name]):
                for gpu in self._gpus_of[name]:
                    self._recording.watch.crashed(gpu, now_s)
                    self._recording.note(Event(now_s, gpu, "server_ended", f"its server ended: {server.reason}"))
            self._restarts[name] = server.restarts
        for xid in self._host.new_xids():
            for gpu, card in self._cards.items():
                if card == xid.uuid and any(gpu in gpus for gpus in self._gpus_of.values()):
                    self._recording.note(self._recording.watch.xid(gpu, xid))
        if (blind := self._host.monitoring_trouble()) != self._blind:
            self._blind = blind
            self._recording.note(Event(now_s, "", "monitoring", blind or "the GPUs can be watched again"))
        if (trouble := self._host.host_trouble()) and trouble != self._trouble:
            self._trouble = trouble
            self._recording.note(Event(now_s, "", "host_trouble", trouble, "inconclusive", _HOST_TROUBLE))
