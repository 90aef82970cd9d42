"""A run as it is written down: readings and load in, records out. Has no clock: a test may let a day pass at once."""

from __future__ import annotations

from collections.abc import Mapping

from obatchd.burnin.journal.recorder import Recorder, Seen
from obatchd.burnin.journal.records import Record
from obatchd.burnin.run.watch import Watch
from obatchd.documents.burnin import Plan
from obatchd.gpus.model import Identity
from obatchd.gpus.track import Track
from obatchd.settings.tables.gpu_health import GpuHealthSettings

_JUDGE_S = 5.0
_KEEP_TRACKS_S = 300.0


class Recording:
    """Everything that is measured in a run.

    Args:
        identities: of the card of each GPU, by the UUIDs of the plan.
        start_s: when it begins, seconds since the epoch.
        earlier: tracks of an earlier part of the run.
        judge_s: seconds between two judgements.
    """

    def __init__(
        self,
        plan: Plan,
        identities: Mapping[str, Identity],
        settings: GpuHealthSettings,
        start_s: float,
        earlier: Mapping[str, Track] | None = None,
        judge_s: float = _JUDGE_S,
    ) -> None:
        self._judge_s = judge_s
        self._kept_marks = False
        self.recorder = Recorder(identities, plan.bucket_s, start_s)
        self.watch = Watch(identities, settings, earlier)
        self._pending: list[Record] = []
        self._judged_s = self._kept_s = start_s

    def note(self, record: Record) -> None:
        """Something else to be written down with the next look."""
        self._pending.append(record)

    def look(self, now_s: float, seen: Mapping[str, Seen]) -> list[Record]:
        """Take the present state of every GPU; returns new records."""
        for gpu, what in seen.items():
            self.watch.read(gpu, what.reading, what.slow)
        records, self._pending = self._pending, []
        if (bucket := self.recorder.look(now_s, seen)) is not None:
            records.append(bucket)
        if now_s - self._judged_s >= self._judge_s:
            self._judged_s = now_s
            records += self.watch.judge(now_s)
        # Later readings are compared with the first ones, so those are kept at once.
        first = not self._kept_marks and self.watch.marked
        if first or now_s - self._kept_s >= _KEEP_TRACKS_S:
            self._kept_s, self._kept_marks = now_s, self.watch.marked
            records.append(self.watch.condensed(now_s))
        return records

    def finish(self, now_s: float) -> list[Record]:
        """The last records, when the run or this part of it ends."""
        records, self._pending = self._pending, []
        if (bucket := self.recorder.close()) is not None:
            records.append(bucket)
        return [*records, *self.watch.judge(now_s), *self.watch.settle(), self.watch.condensed(now_s)]
