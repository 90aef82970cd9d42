"""The search for slots as operators see it."""

from __future__ import annotations

from obatchd.dispatch.tuning.found import Found
from obatchd.dispatch.tuning.tuner import Standing, Tuner
from obatchd.documents.tuning import SlotTuning, TriedSlots, TunedProfile
from obatchd.settings.tables.servers import ServerSettings
from obatchd.times import instant
from obatchd.words import counted


def tuning_document(tuner: Tuner, settings: ServerSettings, *, managed: bool) -> SlotTuning:
    """Everything found, and what goes on; ``managed``: obatchd starts a server itself."""
    off = _off(settings, managed=managed)
    return SlotTuning(not off, off, [_profile(standing, off) for standing in tuner.stands()])


def _off(settings: ServerSettings, *, managed: bool) -> str:
    """Why no numbers are tried, in words; empty where they are."""
    if settings.slots != "auto":
        return f"servers.slots is {settings.slots}: every server has that many"
    if not settings.tune:
        return "servers.tune is false: servers have the most of 8, 4, 2 and 1 slots that fit"
    return "" if managed else "obatchd starts no server itself: others choose the slots of theirs"


def _profile(standing: Standing, off: str) -> TunedProfile:
    found = standing.found
    state = "off" if off else "found" if found.chosen else "measuring" if standing.slots else "waiting"
    return TunedProfile(
        device=found.device,
        model=found.model,
        context_length=found.context_length,
        state=state,
        chosen=found.chosen or None,
        reason=off or _reason(standing),
        slot_bytes=round(found.slot_bytes) or None,
        ollama=found.versions.ollama,
        driver=found.versions.driver,
        digest=found.versions.digest,
        tried=_tried(found, standing),
    )


def _reason(standing: Standing) -> str:
    found = standing.found
    if found.chosen:
        return f"the fastest of {counted(len(found.tried), 'number')} that were measured"
    if standing.slots:
        return f"{standing.server} measures {counted(standing.slots, 'slot')}"
    return standing.waits


def _tried(found: Found, standing: Standing) -> list[TriedSlots]:
    numbers = {*found.tried, *found.cannot, *([standing.slots] if standing.slots else [])}
    return [_one(slots, found, standing) for slots in sorted(numbers)]


def _one(slots: int, found: Found, standing: Standing) -> TriedSlots:
    vram_bytes = found.vram_bytes.get(slots)
    if (one := found.tried.get(slots)) is None:
        state = "measuring" if slots == standing.slots else found.cannot[slots]
        answers = standing.answers if slots == standing.slots else 0
        return TriedSlots(slots, state, None, None, None, None, answers, vram_bytes, None)
    return TriedSlots(
        slots,
        "measured",
        round(one.tokens_per_s, 1),
        round(one.prompt_tokens_per_s, 1),
        round(one.answer_tokens_per_s, 1),
        round(100 * one.spread, 2),
        one.answers,
        vram_bytes,
        instant(one.at_s),
    )
