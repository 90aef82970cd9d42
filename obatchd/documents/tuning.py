"""How many slots servers were tried with, and how fast they were: ``GET /v1/servers/tuning``."""

from __future__ import annotations

import msgspec


class TriedSlots(msgspec.Struct):
    """One number of slots on one kind of GPU."""

    slots: int
    state: str  # measured, measuring, does_not_fit, server_died
    tokens_per_s: float | None  # of prompts and answers, all slots together; null until it is measured
    prompt_tokens_per_s: float | None  # while prompts are read
    answer_tokens_per_s: float | None  # while answers are written
    spread_percent: float | None  # standard error of tokens_per_s
    answers: int  # that were measured
    vram_bytes: int | None  # of the loaded model; null where nobody tells
    measured_at: str | None


class TunedProfile(msgspec.Struct):
    """A model and context length on one kind of GPU."""

    device: str  # the name of the GPU, ``2 x`` that for a group, ``cpu``
    model: str
    context_length: int  # tokens
    state: str  # found, measuring, waiting, off
    chosen: int | None  # slots; null until the search is over
    reason: str  # why it is chosen, or what the search waits for
    slot_bytes: int | None  # memory of one slot, from two loads; null where it is not known
    ollama: str  # versions that this was measured with; empty where they are not known
    driver: str
    digest: str
    tried: list[TriedSlots]


class SlotTuning(msgspec.Struct):
    """The search for the best slots."""

    tune: bool  # whether obatchd searches
    reason: str  # why not; empty where it does
    profiles: list[TunedProfile]
