"""The prompts of a burn-in: long reading and long writing mixed, the same sequence for every GPU.

A prompt of many tokens keeps the arithmetic units busy (prefill), a long answer the memory (decode); a mixture loads a
GPU as production does. Sizes follow the model: tokens per word, and tokens per second, are learned from
its answers, so that no request takes much longer than the limits below: slots have to be emptied for an output check.
"""

from __future__ import annotations

import itertools
import random
from typing import Literal, NamedTuple

_MOST_S, _LEAST_S = 30.0, 3.0  # longest time that reading a prompt, or writing an answer, is meant to take
_RUN_SHARE = 1 / 60  # of a run that a request may take: the slots of a short run must be emptied quickly
_LEAST_PROMPT, _LEAST_ANSWER = 64, 16  # tokens
_FIRST_PROMPT, _FIRST_ANSWER = 256, 48  # tokens, while nothing is known of the model
_MOST_ANSWER = 2048  # tokens
_CONTEXT_SHARE = 0.9  # of the context that a request may fill; words are not tokens
_FIRST_TOKENS_PER_WORD = 2.0
_WEIGHT = 0.2  # of a new observation
_TOO_LONG = 1.3  # a prompt did not fit after all: words have more tokens than was thought

_TEXT = (
    "river stone market letter winter garden engine signal copper valley number circle silver window forest history "
    "machine island pattern village season harbour mirror measure journey weather kitchen library question picture "
    "mountain paper music bridge station corner summer evening doctor farmer captain teacher morning answer country"
)
_WORDS = random.Random(1).choices(_TEXT.split(), k=8192)
# Of plain English words. Newer servers do not count the tokens of a prompt that they knew already, so what they say may
# be far too little.
_LEAST_TOKENS_PER_WORD, _MOST_TOKENS_PER_WORD = 1.0, 10.0

Kind = Literal["read", "write", "both"]
_KINDS: tuple[tuple[Kind, float], ...] = (("read", 0.3), ("write", 0.5), ("both", 0.2))


class Work(NamedTuple):
    """One request: the prompt and the most tokens of its answer."""

    kind: Kind
    prompt: str
    words: int
    answer_tokens: int


class Shape:
    """Measured speed of a model on one kind of GPU; shared by all servers that are to be compared."""

    def __init__(self, context_length: int, duration_s: float) -> None:
        self.context_length = context_length  # tokens of one slot
        self._most_s = min(_MOST_S, max(_LEAST_S, duration_s * _RUN_SHARE))
        self._tokens_per_word = _FIRST_TOKENS_PER_WORD
        # Seconds and not tokens: the mean of rates follows the few requests that had a server for themselves.
        self._read_s = self._most_s / _FIRST_PROMPT  # for one token, as the next
        self._write_s = self._most_s / _FIRST_ANSWER

    def work(self, number: int) -> Work:
        """The ``number``-th request of every server; each begins differently, so that no cached prompt is reused."""
        draw = random.Random(number)
        kind: Kind = draw.choices([kind for kind, _ in _KINDS], [weight for _, weight in _KINDS])[0]
        share = {"read": 0.08, "write": draw.uniform(0.5, 1.0), "both": draw.uniform(0.1, 0.3)}[kind]
        most = min(_MOST_ANSWER, self.context_length // 3, max(_LEAST_ANSWER, int(self._most_s / self._write_s)))
        answer = max(_LEAST_ANSWER, int(most * share))
        share = {"read": draw.uniform(0.5, 1.0), "write": 0.02, "both": draw.uniform(0.1, 0.4)}[kind]
        room = int(self.context_length * _CONTEXT_SHARE) - answer
        most = min(room, max(_LEAST_PROMPT, int(self._most_s / self._read_s)))
        words = max(8, int(max(_LEAST_PROMPT, int(most * share)) / self._tokens_per_word))
        start = draw.randrange(len(_WORDS))
        text = " ".join(itertools.islice(itertools.cycle(_WORDS), start, start + words - 6))
        return Work(kind, f"{number} {draw.getrandbits(32):08x} {text}\nContinue the text above.", words, answer)

    def learn(self, work: Work, prompt_tokens: int, read_s: float, answer_tokens: int, write_s: float) -> None:
        """Learn from an answer; a prompt that the server knew already says nothing about reading."""
        if prompt_tokens > 0:
            told = min(_MOST_TOKENS_PER_WORD, max(_LEAST_TOKENS_PER_WORD, prompt_tokens / work.words))
            self._tokens_per_word += _WEIGHT * (told - self._tokens_per_word)
        if read_s > 0 and prompt_tokens >= _LEAST_PROMPT // 2:
            self._read_s += _WEIGHT * (read_s / prompt_tokens - self._read_s)
        if write_s > 0 and answer_tokens > 1:
            self._write_s += _WEIGHT * (write_s / answer_tokens - self._write_s)

    def too_long(self) -> None:
        """A prompt did not fit its context."""
        self._tokens_per_word = min(_MOST_TOKENS_PER_WORD, self._tokens_per_word * _TOO_LONG)


def context_for(target_bytes: float, small: tuple[int, float], large: tuple[int, float], most_tokens: int) -> int:
    """The context with which a model fills memory up to a target.

    The memory of a model grows evenly with its context, so two measurements (tokens, and bytes in use) show it.
    A multiple of 256 tokens; the larger of the two where memory does not grow with the context.
    """
    per_token = (large[1] - small[1]) / (large[0] - small[0])
    if per_token <= 0:
        return large[0]
    wanted = small[0] + (target_bytes - small[1]) / per_token
    return max(small[0], int(min(wanted, most_tokens)) // 256 * 256)
