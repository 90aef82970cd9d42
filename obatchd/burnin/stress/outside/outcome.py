"""What a program of other people found out about one GPU."""

from __future__ import annotations

from typing import Literal

import msgspec

# wrong_results: what it computed was wrong. failed: another test that it made. partly: some tests were left out, and
# the others passed. not_done: nothing was found out, whatever it says itself.
Code = Literal["passed", "partly", "wrong_results", "failed", "not_done"]


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """For one GPU; ``words`` follow the name of the program, as in "gpu-burn computed nothing"."""

    code: Code
    words: str
    wrong: int = 0  # wrong elements of results, as far as they were counted
    operations: int = 0
    tests: dict[str, str] = {}
