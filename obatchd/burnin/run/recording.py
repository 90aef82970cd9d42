"""A run as it is written down: readings and load in, records out. Has no clock: a test may let a day pass at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from obatchd.burnin.journal.recorder import Recorder, Seen
from obatchd.burnin.journal.records import Consequence, Event, Record, Tracks
from obatchd.documents.burnin.plan import Plan
from obatchd.gpus import xids
from obatchd.gpus.finding import Finding, next_action
from obatchd.gpus.model import Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.rules import assessment
from obatchd.gpus.track import Crash, Track
from obatchd.settings.tables.gpu_health import GpuHealthSettings

_RANK: dict[Consequence, int] = {"note": 0, "warn": 1, "inconclusive": 2, "fail": 3}
_JUDGE_S = 5.0  # between two judgements
_KEEP_TRACKS_S = 300.0


class Recording:
    """Everything that is measured in a run.

    Args:
        identities: of the card, by the UUID of the GPU or of the slice of it that is tested.
        start_s: when it begins, seconds since the epoch.
        earlier: tracks of an earlier part of the run.
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


class Watch:
    """Judges the GPUs of a run since its own beginning, apart from their tracks of daily work, by the rules of
    :mod:`obatchd.gpus.rules.assessment`."""

    def __init__(
        self,
        identities: Mapping[str, Identity],
        settings: GpuHealthSettings,
        earlier: Mapping[str, Track] | None = None,
    ) -> None:
        self._settings = settings
        self._tracks = {
            gpu: (earlier or {}).get(gpu) or Track(identity, keep_xids=True) for gpu, identity in identities.items()
        }
        self.urgent: set[str] = set()  # GPUs whose load must go at once
        self._told: dict[tuple[str, str], Event] = {}
        self._unsettled: dict[tuple[str, str], Event] = {}  # told before with other words

    @property
    def marked(self) -> bool:
        """Whether counters have been read of every GPU: increases are known from here on."""
        return all(track.mark is not None for track in self._tracks.values())

    def read(self, gpu: str, reading: Reading | None, slow: SlowReading | None) -> None:
        """The latest readings of a GPU; those that are not new are passed over."""
        track = self._tracks[gpu]
        if reading is not None and (track.latest is None or reading.at_s > track.latest.at_s):
            track.add(reading)
        if slow is not None and (track.slow is None or slow.at_s > track.slow.at_s):
            track.add_slow(slow)

    def xid(self, gpu: str, event: XidEvent) -> Event:
        """An XID; it goes into the report verbatim, whatever it means for the verdict."""
        self._tracks[gpu].add_xid(event)
        meaning = xids.classify(event, self._settings.xids).meaning
        return Event(event.at_s, gpu, f"xid_{event.xid}", f"XID {event.xid}: {meaning}", verbatim=event.line)

    def crashed(self, gpu: str, at_s: float) -> None:
        """The server on a GPU ended by itself."""
        self._tracks[gpu].add_crash(Crash(at_s))

    def ended(self, gpu: str, at_s: Iterable[float]) -> None:
        """We ended the server on a GPU at these times."""
        self._tracks[gpu].add_ended(*at_s)

    def judge(self, now_s: float) -> list[Event]:
        """Findings that are new, or graver than when they were told."""
        found = []
        for gpu, track in self._tracks.items():
            siblings = [other for other in self._tracks.values() if other is not track]
            for finding in assessment.assess(track, self._settings, siblings).findings:
                event = _event(gpu, track.identity, finding, now_s)
                if finding.urgent:
                    self.urgent.add(gpu)
                key = (gpu, finding.signal)
                told = self._told.get(key)
                if told is None or _RANK[event.consequence] > _RANK[told.consequence]:
                    self._told[key] = event
                    self._unsettled.pop(key, None)
                    found.append(event)
                elif event.consequence == told.consequence and event.text != told.text:
                    self._unsettled[key] = msgspec.structs.replace(event, at_s=now_s)
        return found

    def settle(self) -> list[Event]:
        """At the end: findings whose numbers grew since they were told, as they are now."""
        last, self._unsettled = list(self._unsettled.values()), {}
        return last

    def condensed(self, now_s: float) -> Tracks:
        """The tracks that a later daemon needs to go on."""
        kept = {gpu: msgspec.structs.replace(track, recent=[], hour=[]) for gpu, track in self._tracks.items()}
        return Tracks(now_s, kept)


def _event(gpu: str, identity: Identity, finding: Finding, now_s: float) -> Event:
    consequence: Consequence = "note"
    if finding.burn_in == "fail":
        consequence = "fail"
    elif finding.burn_in == "warn" or finding.level != "ok":
        consequence = "warn"
    action = next_action(identity, finding.remedies)
    return Event(min(finding.since_s or now_s, now_s), gpu, finding.signal, finding.text, consequence, action)
