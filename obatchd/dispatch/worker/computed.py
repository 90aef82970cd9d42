"""How many tokens of prompts a server did not compute, because a slot had them: an estimate.

Ollama counts all tokens of a prompt (``prompt_eval_count``), and the time of those that it had to compute
(``prompt_eval_duration``): 0.24 and since 0.30.1. So what the others would have taken shows by the time that a token
takes where nothing can have been there: in the first prompt of a family on this server.
"""

from __future__ import annotations

from obatchd.ollama.client import Answer

_REMEMBERED = 256  # families
_FEWEST = 64  # tokens from which the time of a prompt says something


class Computed:
    """What one server computed of the prompts of families."""

    def __init__(self) -> None:
        self._met: dict[tuple[int, int], None] = {}
        self._token_s = 0.0  # that a token of a prompt takes to compute

    def reused(self, job: int, family: int | None, answer: Answer) -> int:
        """About how many prompt tokens of this answer were there already; 0 of a request without a family."""
        if family is None or answer.fault is not None or answer.prompt_tokens < _FEWEST or answer.prompt_s <= 0:
            return 0
        if (job, family) not in self._met:
            self._met[job, family] = None
            if len(self._met) > _REMEMBERED:
                del self._met[next(iter(self._met))]
            token_s = answer.prompt_s / answer.prompt_tokens
            self._token_s += 0.3 * (token_s - self._token_s) if self._token_s else token_s
            return 0
        return max(0, answer.prompt_tokens - round(answer.prompt_s / self._token_s))
