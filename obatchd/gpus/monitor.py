"""Watches every card: folds readings and XIDs into tracks, judges them, and remembers.

Kept per card, by UUID, over restarts: who it is, the mark from which errors count, and its quarantine. A card that was
here and is not listed any more is lost, also when it is missing after a boot.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, Protocol

import attrs
import msgspec

import obatchd.log
from obatchd.documents.gpus import GpuEvent
from obatchd.gpus.finding import Assessment, Finding
from obatchd.gpus.kernel_log import normal_address
from obatchd.gpus.model import Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.probe import Listener, Probe
from obatchd.gpus.rules.assessment import LASTING, assess
from obatchd.gpus.source import source_meant, source_of
from obatchd.gpus.track import Crash, Track
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

log = obatchd.log.get(__name__)

EventKind = Literal["finding", "cleared", "xid", "quarantine", "release", "lend", "return", "share", "crash"]
_PREFIX = "gpu/"
_FORGOTTEN = "null"
_SAME_S = 5.0  # the same XID of the same card within this time is one event, told by both sources or in a storm
_AGAIN_S = 600.0  # a finding that comes and goes is told again after this
_ONE_CRASH_S = 10.0  # requests in flight together do not fail at the very same instant
_MOST_WAITING = 1000  # XIDs of addresses that are not known yet
_FRESH_S = 60.0  # an XID that is older when it is read was told to an earlier daemon


class RecordStore(Protocol):
    """A small persistent store of strings; :class:`obatchd.gpucare.records.GpuRecords`."""

    def starting_with(self, prefix: str) -> dict[str, str]: ...
    def set(self, key: str, value: str) -> None: ...


class Quarantine(msgspec.Struct, frozen=True):
    """Why a card is out of use, since when, and the next action."""

    reason: str
    since_s: float
    by: Literal["rules", "administrator"] = "rules"
    action: str = ""
    findings: tuple[Finding, ...] = ()


class Record(msgspec.Struct):
    """The record of a card."""

    identity: Identity
    began_s: float
    mark: SlowReading | None = None
    accepted: list[str] = []
    quarantine: Quarantine | None = None
    lent_until_s: float = 0.0  # epoch seconds; 0: not lent
    ended: list[float] = []  # when we ended its server; the next daemon reads the XID 45 of that again
    shares_unknown: bool = False  # what others hold on it of unknown size is accepted

    def track(self) -> Track:
        """The track of the card that begins with this record."""
        return Track(self.identity, self.began_s, self.mark, accepted=self.accepted, ended=self.ended)


class MonitorListener:
    """Hears the messages of the monitor, in the event loop; does nothing by itself."""

    def readings_of_cards(self, readings: list[tuple[Identity, Reading]]) -> None:
        """One reading of each card."""

    def health_event(self, event: GpuEvent) -> None:
        """Something happened to a card."""

    def xid(self, event: XidEvent) -> None:
        """A new XID of a card, told once."""

    def quarantined(self, card: str, quarantine: Quarantine, urgent: bool) -> None:
        """The card with this UUID has to be taken out of use, at once where that is ``urgent``."""


class Siblings(Protocol):
    """Knows which cards do the same work; :class:`obatchd.gpucare.watch.GpuWatch`."""

    def comparable(self, card: str) -> set[str]:
        """Cards that do the same work as ``card``: trouble that they have, too, is not its own fault."""
        ...

    def tracks_elsewhere(self, card: str, named: AbstractSet[str]) -> Sequence[Track]:
        """As far as they are known, those of cards of other machines that do so, or are ``named`` by UUID."""
        ...


@attrs.define(eq=False)
class Monitor(Listener):
    """One for all cards of the host; lives in the event loop."""

    _probe: Probe
    _store: RecordStore
    _settings: Current[Settings]
    _siblings: Siblings
    _listeners: list[MonitorListener] = attrs.field(factory=list)
    records: dict[str, Record] = attrs.field(factory=dict, init=False)  # by UUID of the card, as the next two
    tracks: dict[str, Track] = attrs.field(factory=dict, init=False)
    assessments: dict[str, Assessment] = attrs.field(factory=dict, init=False)
    asleep: set[str] = attrs.field(factory=set, init=False)  # UUIDs of cards that are not asked, so that they can sleep
    dirty: set[str] = attrs.field(factory=set, init=False)  # UUIDs whose record has to be written
    _waiting: list[XidEvent] = attrs.field(factory=list, init=False)
    _told: dict[tuple[str, str], float] = attrs.field(factory=dict, init=False)

    def listen(self, listener: MonitorListener) -> None:
        """Let ``listener`` hear what happens from now on."""
        self._listeners.append(listener)

    def __attrs_post_init__(self) -> None:
        """Only cards of the present source: a spool that was tried with another one misses none of its cards."""
        listed, meant = [gpu.driver for gpu in self._probe.gpus], source_meant(self._settings.value.gpus.use)
        source = source_of(listed[0]) if listed else meant
        for key, text in self._store.starting_with(_PREFIX).items():
            if text == _FORGOTTEN:
                continue
            try:
                record = msgspec.json.decode(text, type=Record)
            except msgspec.DecodeError as error:
                log.warning("gpu_record_unreadable", key=key, reason=str(error))
                continue
            if source_of(record.identity.driver) == source:
                uuid = record.identity.uuid
                self.records[uuid], self.tracks[uuid] = record, record.track()
        for gpu in self._probe.gpus:
            self._track(gpu.card)

    @property
    def since_s(self) -> float:
        """From when on XIDs count, epoch seconds."""
        return min((track.began_s for track in self.tracks.values() if track.began_s), default=time.time())

    def save(self) -> None:
        """Write the records that changed; blocks."""
        for uuid in sorted(self.dirty):
            self.dirty.discard(uuid)
            record = self.records.get(uuid)
            self._store.set(_PREFIX + uuid, msgspec.json.encode(record).decode() if record else _FORGOTTEN)

    def _tell(
        self, uuid: str, kind: EventKind, text: str, level: str = "", signal: str = "", at_s: float | None = None
    ) -> None:
        card, at_s = self.tracks[uuid].identity, time.time() if at_s is None else at_s
        event = GpuEvent(at_s, uuid, card.serial, card.slot or card.pci_bus_id, kind, level, signal, text)
        for listener in self._listeners:
            listener.health_event(event)

    # From the probe and the kernel log.

    def identities(self, identities: list[Identity]) -> None:
        for card in identities:
            track = self._track(card.uuid)
            if track.identity != card:
                track.identity = self.records[card.uuid].identity = card
                self.dirty.add(card.uuid)
        waiting, self._waiting = self._waiting, []
        self.xids(waiting)

    def readings(self, readings: list[Reading]) -> None:
        cards = {gpu.uuid: gpu.card for gpu in self._probe.gpus}
        of_cards: dict[str, Reading] = {}
        for reading in readings:
            uuid = cards.get(reading.uuid, reading.uuid)
            if uuid not in of_cards:  # heat and power of slices are those of their card
                of_cards[uuid] = msgspec.structs.replace(reading, uuid=uuid)
        self.asleep = {uuid for uuid, reading in of_cards.items() if reading.asleep}  # nothing befalls them
        told = [(self._track(uuid), reading) for uuid, reading in of_cards.items()]
        asked = [(track, reading) for track, reading in told if not reading.asleep]
        for track, reading in asked:
            track.add(reading)
        for listener in self._listeners:
            listener.readings_of_cards([(track.identity, reading) for track, reading in asked])
        for uuid, track in self.tracks.items():
            if uuid not in of_cards and readings:
                words = {"handle": "the driver does not list it any more"}
                track.add(Reading(uuid, time.time(), errors=words, trouble="lost"))
        self._judge()

    def slow_readings(self, readings: list[SlowReading]) -> None:
        for reading in readings:
            track = self._track(reading.uuid)
            track.add_slow(reading)
            if self.records[reading.uuid].mark is None and not reading.trouble:
                self.records[reading.uuid].mark = reading
                self.dirty.add(reading.uuid)

    def xids(self, events: Sequence[XidEvent]) -> None:
        """XIDs of either source."""
        by_address = {normal_address(track.identity.pci_bus_id): uuid for uuid, track in self.tracks.items()}
        for event in events:
            uuid = event.uuid or by_address.get(event.pci_bus_id, "")
            if uuid not in self.tracks:
                self._waiting = [*self._waiting[-_MOST_WAITING:], event]
                continue
            self._xid(uuid, msgspec.structs.replace(event, uuid=uuid))

    def _xid(self, uuid: str, event: XidEvent) -> None:
        track = self.tracks[uuid]
        if event.at_s < track.began_s:
            return
        for place, known in enumerate(track.xids):
            if known.xid == event.xid and abs(known.at_s - event.at_s) <= _SAME_S:
                if event.line and not known.line:  # the kernel log says more
                    track.xids[place] = msgspec.structs.replace(event, at_s=known.at_s)
                return
        track.add_xid(event)
        log.warning("gpu_xid", gpu=uuid, xid=event.xid, source=event.source, line=event.line)
        if event.at_s > time.time() - _FRESH_S:
            for listener in self._listeners:
                listener.xid(event)
            words = event.line or f"XID {event.xid}"
            self._tell(uuid, "xid", words, signal=str(event.xid), at_s=event.at_s)

    def crashed(self, uuid: str, work: str, at_s: float) -> None:
        """The server on a card, or its runner, crashed with ``work`` loaded; it may have been what it worked on."""
        if (track := self.tracks.get(uuid)) is not None:
            track.crashed_s[work] = at_s

    def cleared(self, uuid: str, work: str, at_s: float, answered_by: set[str], reason: str) -> None:
        """It was not what it worked on: servers on other cards answered that. Each crash counts once."""
        track, others = self.tracks.get(uuid), sorted(answered_by - {uuid})
        if track is None or not others:
            return
        for crash in track.server_crashes:
            if abs(crash.at_s - at_s) < _ONE_CRASH_S:
                crash.answered_by = sorted({*crash.answered_by, *others})
                return
        track.add_crash(Crash(at_s, work, others))
        self._tell(uuid, "crash", reason, at_s=at_s)

    def ended(self, uuid: str, *at_s: float) -> None:
        """We ended the server on a card, or a process that an earlier daemon left there; known times may come again."""
        if (track := self.tracks.get(uuid)) is not None:
            track.add_ended(*at_s)
            if self.records[uuid].ended != track.ended:
                self.records[uuid].ended = track.ended
                self.dirty.add(uuid)

    def _track(self, uuid: str) -> Track:
        if uuid not in self.tracks:
            card = next((gpu.as_card() for gpu in self._probe.gpus if gpu.card == uuid), Identity(uuid))
            self.records[uuid] = Record(card, time.time())
            self.tracks[uuid] = self.records[uuid].track()
            self.dirty.add(uuid)
        return self.tracks[uuid]

    # Judging.

    def _judge(self) -> None:
        for uuid, track in self.tracks.items():
            recently_s = track.now_s - self._settings.value.gpu_health.repeat_s
            comparable = self._siblings.comparable(uuid) - {uuid}
            comparable |= {card for c in track.server_crashes if c.at_s >= recently_s for card in c.answered_by}
            siblings = [other for name, other in self.tracks.items() if name in comparable]
            siblings += self._siblings.tracks_elsewhere(uuid, comparable)
            found = assess(track, self._settings.value.gpu_health, siblings)
            self._tell_changes(uuid, self.assessments.get(uuid), found)
            self.assessments[uuid] = found
            if found.level == "quarantine" and self.records[uuid].quarantine is None:
                worst = tuple(finding for finding in found.findings if finding.level == "quarantine")
                self.quarantine(uuid, Quarantine(found.reason, time.time(), "rules", found.action, worst), found.urgent)

    def _tell_changes(self, uuid: str, before: Assessment | None, after: Assessment) -> None:
        old = {finding.signal: finding for finding in before.findings} if before else {}
        new = {finding.signal: finding for finding in after.findings}
        for signal, finding in new.items():
            worse = signal not in old or old[signal].level != finding.level
            if worse and finding.level != "ok" and self._may_tell(uuid, f"{signal}/{finding.level}"):
                log.warning("gpu_finding", gpu=uuid, signal=signal, level=finding.level, reason=finding.text)
                self._tell(uuid, "finding", finding.text, finding.level, signal)
        for signal in old.keys() - new.keys():
            if self._may_tell(uuid, f"{signal}/cleared"):
                log.info("gpu_finding_cleared", gpu=uuid, signal=signal, reason=old[signal].text)
                self._tell(uuid, "cleared", f"over: {old[signal].text}", signal=signal)

    def _may_tell(self, uuid: str, what: str) -> bool:
        now_s, key = time.monotonic(), (uuid, what)
        if now_s - self._told.get(key, float("-inf")) < _AGAIN_S:
            return False
        self._told[key] = now_s
        return True

    # Quarantine.

    def quarantine(self, uuid: str, quarantine: Quarantine, urgent: bool) -> None:
        """Take a card out of use, until it is released."""
        self.records[uuid].quarantine = quarantine
        self.dirty.add(uuid)
        log.error("gpu_quarantined", gpu=uuid, by=quarantine.by, reason=quarantine.reason, action=quarantine.action)
        self._tell(uuid, "quarantine", quarantine.reason, "quarantine")
        for listener in self._listeners:
            listener.quarantined(uuid, quarantine, urgent)

    def obstacle(self, uuid: str) -> str:
        """Faults that keep a card from being released now, in words; empty when there is none. Past events do not."""
        track = self.tracks[uuid]
        fresh = Track(track.identity, track.now_s, track.slow, track.latest, track.slow, recent=list(track.recent[-5:]))
        found = assess(fresh, self._settings.value.gpu_health)
        return next((f.text for f in found.findings if f.level == "quarantine" and f.signal not in LASTING), "")

    def release(self, uuid: str) -> list[str]:
        """End a quarantine; errors count from now on. Lasting defects are accepted and only warn; returns them.

        A card that is not there any more is forgotten.
        """
        track, record = self.tracks[uuid], self.records[uuid]
        if not any(gpu.card == uuid for gpu in self._probe.gpus):
            del self.tracks[uuid], self.records[uuid]
            self.assessments.pop(uuid, None)
            self.dirty.add(uuid)
            return []
        judged = self.assessments.get(uuid)
        accepted = [f.signal for f in judged.findings if f.signal in LASTING] if judged else []
        now_s, mark = time.time(), track.slow
        lent_until_s, ended, shares = record.lent_until_s, track.ended, record.shares_unknown
        self.records[uuid] = Record(
            track.identity, now_s, mark, accepted, lent_until_s=lent_until_s, ended=ended, shares_unknown=shares
        )
        self.tracks[uuid] = Track(track.identity, now_s, mark, track.latest, mark, accepted=accepted, ended=ended)
        self.dirty.add(uuid)
        self._told = {key: at_s for key, at_s in self._told.items() if key[0] != uuid}
        log.warning("gpu_released", gpu=uuid, accepted=",".join(accepted))
        self._tell(uuid, "release", "released by an administrator")
        return accepted

    def lend(self, uuid: str, until_s: float) -> None:
        """Note until when a card belongs to somebody else; 0 takes it back."""
        self.records[uuid].lent_until_s = until_s
        self.dirty.add(uuid)
        words = f"lent until {time.strftime('%d %b %H:%M', time.localtime(until_s))}" if until_s else "taken back"
        self._tell(uuid, "lend" if until_s else "return", words)

    def share(self, uuid: str, shared: bool) -> None:
        """Note whether processes of others whose memory nobody tells are accepted on a card."""
        self.records[uuid].shares_unknown = shared
        self.dirty.add(uuid)
        words = "is" if shared else "is not"
        self._tell(uuid, "share", f"memory of unknown size that others hold {words} accepted")
