"""What is known of the slots of a profile on one kind of GPU, kept as the fact ``tuned/<GPU>/<model>/<context>``."""

from __future__ import annotations

from typing import NamedTuple

import attrs
import msgspec

from obatchd import log
from obatchd.dispatch.tuning.doubts import doubt
from obatchd.dispatch.tuning.ports import FactStore
from obatchd.dispatch.tuning.search import GAIN, LADDER, Tried, below, best_of, following
from obatchd.dispatch.tuning.window import Mix
from obatchd.jobs.model import Profile

_log = log.get(__name__)
PREFIX = "tuned/"
DOES_NOT_FIT, SERVER_DIED = "does_not_fit", "server_died"
_MOST_BEGINNINGS = 2  # of a number that was never measured, because the daemon was killed meanwhile


class Key(NamedTuple):
    """What slots are found for."""

    device: str
    profile: Profile

    @property
    def fact(self) -> str:
        return f"{PREFIX}{self.device}/{self.profile.model}/{self.profile.context_length}"


class Versions(msgspec.Struct, frozen=True):
    """What the speed depends on: with another one it is measured again."""

    ollama: str = ""
    driver: str = ""
    digest: str = ""

    def hold_for(self, other: Versions) -> bool:
        """Whether what was measured with these holds for ``other``; what is not known in either counts as the same."""
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return all(one == two or not one or not two for one, two in pairs)


class Found(msgspec.Struct):
    """The state of one search; it survives the daemon."""

    start: int  # the number of slots it began with
    model: str = ""
    device: str = ""
    context_length: int = 0
    versions: Versions = Versions()
    mix: Mix = Mix(0.0, 0.0)
    tried: dict[int, Tried] = {}
    cannot: dict[int, str] = {}  # numbers that are not tried with these versions, and why
    vram_bytes: dict[int, int] = {}  # of the loaded model, by slots
    begun: dict[int, int] = {}  # how often a number was begun and not measured
    chosen: int = 0  # 0 while the search goes on

    @property
    def good(self) -> int:
        """The number that serves well, as far as it is known."""
        return self.chosen or (best_of(self.tried).slots if self.tried else self.start)

    def used_of(self, slots: int, otherwise: int) -> int:
        """How many of so many slots are used while nothing is measured: no more than serve well, if that is known."""
        return min(slots, self.good if self.tried else otherwise)

    def gains_from(self, slots: int) -> bool:
        """Whether the good number may be worth a change from a smaller one."""
        if slots >= self.good:
            return False
        return slots not in self.tried or self.tried[self.good].tokens_per_s >= (
            (1 + GAIN) * self.tried[slots].tokens_per_s
        )

    @property
    def slot_bytes(self) -> float:
        """Memory of one slot, from two loads with different numbers; 0 until there were two."""
        if len(self.vram_bytes) < 2:
            return 0.0
        least, most = min(self.vram_bytes), max(self.vram_bytes)
        return max(0.0, (self.vram_bytes[most] - self.vram_bytes[least]) / (most - least))

    def fitting(self, memory_bytes: int) -> list[int]:
        """The numbers of the ladder that may be tried where the GPUs have so much memory (0: nobody knows)."""
        return [slots for slots in LADDER if self._may_try(slots, memory_bytes)]

    def _may_try(self, slots: int, memory_bytes: int) -> bool:
        if slots in self.tried:
            return True
        if any(reason == DOES_NOT_FIT and slots >= other for other, reason in self.cannot.items()):
            return False
        if slots in self.cannot or self.begun.get(slots, 0) >= _MOST_BEGINNINGS:
            return False
        return not memory_bytes or self.needs_bytes(slots) <= memory_bytes

    def needs_bytes(self, slots: int) -> float:
        """Memory of the model with so many slots, as it was or must be; 0 where that is not known."""
        if slots in self.tried and slots in self.vram_bytes:
            return self.vram_bytes[slots]
        if not self.slot_bytes:
            return 0.0
        known = max(self.vram_bytes)
        return self.vram_bytes[known] + (slots - known) * self.slot_bytes

    def following(self, memory_bytes: int) -> int | None:
        """The number to measure next, or None."""
        return following(self.start, self.tried, self.fitting(memory_bytes))

    def smaller(self, memory_bytes: int) -> int | None:
        """A number below the first one, where none was measured yet; the search needs it anyhow."""
        if self.start not in self.tried or min(self.tried) < self.start:
            return None
        return below(self.start, self.fitting(memory_bytes))

    def compare_with(self, mix: Mix) -> None:
        """A window with answers of this mix is about to be noted: say for which mix all are compared from now on.

        It is that of the first window, but with the shortest prompts of all. What a request costs besides its tokens is
        measured with its prompt: multiplied for prompts that are longer than those of the window, it would count as
        often as these are longer.
        """
        if not self.tried:
            self.mix = mix
        elif mix.prompt_tokens < self.mix.prompt_tokens:
            self.mix = self.mix._replace(prompt_tokens=mix.prompt_tokens)
            for one in self.tried.values():
                one.tokens_per_s = one.at(*self.mix)

    def note(self, measured: Tried) -> None:
        before = self.tried.get(measured.slots)
        self.tried[measured.slots] = before.with_more(measured) if before else measured
        self.begun.pop(measured.slots, None)


@attrs.define(eq=False)
class Kept:
    """Everything found, by device and profile."""

    _facts: FactStore
    _found: dict[Key, Found] = attrs.field(factory=dict, init=False)
    _told: set[str] = attrs.field(factory=set, init=False)  # facts that cannot be right

    def of(self, key: Key, versions: Versions, start: int, memory_bytes: int = 0) -> Found:
        """What is known with these versions; with others, a search that begins with the number found then."""
        found = self._found.get(key)
        if found is None and (text := self._facts.get(key.fact)):
            found = self._believed(key.fact, text, memory_bytes)
        if found is None or not found.versions.hold_for(versions):
            if found is not None:
                _log.info("slots_searched_again", model=key.profile.model, device=key.device)
            begin = found.good if found is not None else start
            found = Found(begin, key.profile.model, key.device, key.profile.context_length, versions)
        elif found.versions != versions:  # one of them is known now
            known = zip(msgspec.structs.astuple(versions), msgspec.structs.astuple(found.versions), strict=True)
            found.versions = Versions(*(new or old for new, old in known))
        self._found[key] = found
        return found

    def keep(self, key: Key) -> None:
        """Write down what is known."""
        self._facts.set(key.fact, msgspec.json.encode(self._found[key]).decode())

    def forgive(self) -> None:
        """Numbers that were begun and not measured may be begun as if nothing had happened."""
        for key, found in self._found.items():
            if found.begun:
                found.begun.clear()
                self.keep(key)

    def all(self) -> list[Found]:
        """Whatever was found, with any versions."""
        known = {key.fact: found for key, found in self._found.items()}
        for fact, text in self._facts.starting_with(PREFIX).items():
            if fact not in known and (found := self._believed(fact, text)) is not None:
                known[fact] = found
        return [known[fact] for fact in sorted(known)]

    def _believed(self, fact: str, text: str, memory_bytes: int = 0) -> Found | None:
        """What a fact says; None where that cannot be right, or is of another version of obatchd: it is found anew."""
        try:
            found = msgspec.json.decode(text, type=Found)
            reason = doubt(found, memory_bytes)
        except msgspec.MsgspecError as error:
            found, reason = None, str(error)
        if not reason:
            return found
        if fact not in self._told:
            self._told.add(fact)
            _log.warning("slots_not_believed", key=fact, reason=reason)
        return None
