"""Whether what was kept of a search can be right: a file may be damaged, edited, or of another machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from obatchd.dispatch.tuning.search import LADDER, Tried
from obatchd.words import counted

if TYPE_CHECKING:
    from obatchd.dispatch.tuning.found import Found

_MOST = LADDER[-1]
# More than any machine has; what is beyond is no measurement.
_MOST_TOKENS_PER_S = 1e8
_MOST_TOKENS = 1e8
_MOST_BYTES = 1 << 50
_MOST_ANSWERS = 10**9
_MOST_WINDOWS = 1000
_ROUGHLY = 1.1  # what a number takes that was loaded once may be an estimate


def doubt(found: Found, memory_bytes: int = 0) -> str:
    """Why ``found`` cannot be right on a server with so much memory (0: nobody knows); empty where it can."""
    return next(_doubts(found, memory_bytes), "")


def _doubts(found: Found, memory_bytes: int) -> Iterator[str]:
    counts = {found.start, *found.tried, *found.cannot, *found.vram_bytes, *found.begun}
    for slots in sorted(counts):
        if not 1 <= slots <= _MOST:
            yield f"no server has {counted(slots, 'slot')}"
    for slots, tried in found.tried.items():
        if slots not in LADDER and slots != found.start:
            yield f"nothing tries {counted(slots, 'slot')}"
        if tried.slots != slots or not _is_measured(tried):
            yield f"the speed with {counted(slots, 'slot')} is no measurement"
        if memory_bytes and found.needs_bytes(slots) > _ROUGHLY * memory_bytes:
            yield f"its memory does not hold {counted(slots, 'slot')}"
    if found.chosen and found.chosen not in found.tried:
        yield f"nothing measured the {counted(found.chosen, 'slot')} that were chosen"
    if any(not 0 <= size <= _MOST_BYTES for size in found.vram_bytes.values()):
        yield "no model takes so much memory"
    if any(not 0 <= times <= _MOST_WINDOWS for times in found.begun.values()):
        yield "no number is begun so often"
    if not all(_within(tokens, _MOST_TOKENS) for tokens in found.mix):
        yield "no answer has so many tokens"


def _is_measured(tried: Tried) -> bool:
    speeds = (tried.tokens_per_s, tried.prompt_tokens_per_s, tried.answer_tokens_per_s)
    return (
        tried.tokens_per_s > 0
        and all(_within(speed, _MOST_TOKENS_PER_S) for speed in speeds)
        and _within(tried.spread, _MOST_TOKENS_PER_S)
        and 0 <= tried.answers <= _MOST_ANSWERS
        and 1 <= tried.windows <= _MOST_WINDOWS
        and _within(tried.at_s, 1e11)
    )


def _within(value: float, most: float) -> bool:
    """False for what is no number, too."""
    return math.isfinite(value) and 0 <= value <= most
