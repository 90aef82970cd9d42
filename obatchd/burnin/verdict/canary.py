"""The output check: finds a GPU that computes wrong without saying so. Pure; :mod:`obatchd.burnin.run.checker` asks.

A canary is the same short prompt, answered at temperature 0 with a fixed seed while nothing else is in flight on the
GPU, after flush prompts that begin differently have taken every slot: then the server computes the same operations in
the same order each time, and the same GPU gives the same answer. That has to be shown first (calibration); where it
does not hold, the check is off and the report says so. A deviation is followed up: repeated on the same GPU, and run
on the siblings. Only a deviation that comes again while the siblings agree is confirmed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from obatchd.burnin.journal.records import Canary, Step
from obatchd.documents.burnin.report import OutputCheck

LEAST_RUNS = 3  # a reference needs a majority
CONSISTENT_PERCENT = 90.0  # of the calibration that must agree
REPEATS = 3
CONFIRMING = 2  # of the repeats
_SPREAD_FACTOR = 4.0  # largest difference of a log probability, in units of the calibration's spread
_LEAST_TOLERANCE = 1e-4


class Answer(msgspec.Struct, frozen=True):
    """One answer to the canary: a digest of its text, and the log probability of each token where told."""

    digest: str
    logprobs: tuple[float, ...] = ()


class Reference(msgspec.Struct, frozen=True):
    """The answer of a GPU that is well."""

    answer: Answer
    tolerance: float


class Calibration(NamedTuple):
    """The reference, or why there is none."""

    reference: Reference | None
    text: str
    strays: int = 0


def deviation(one: Answer, other: Answer) -> float | None:
    """Largest difference of a log probability; None where they cannot be compared token by token."""
    if not one.logprobs or len(one.logprobs) != len(other.logprobs):
        return None
    return max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))


def calibrate(answers: Sequence[Answer]) -> Calibration:
    """Learn the answer of a GPU from repetitions of its own."""
    if len(answers) < LEAST_RUNS:
        return Calibration(None, f"off: only {len(answers)} of the calibration's answers came")
    digest, count = Counter(answer.digest for answer in answers).most_common(1)[0]
    share = 100 * count / len(answers)
    if share < CONSISTENT_PERCENT:
        return Calibration(
            None,
            f"off: the same prompt does not get the same answer here ({count} of {len(answers)} agree), so an answer "
            "that differs would say nothing about the GPU",
        )
    same = [answer for answer in answers if answer.digest == digest]
    spread = max((deviation(same[0], answer) or 0.0 for answer in same), default=0.0)
    reference = Reference(same[0], max(_LEAST_TOLERANCE, _SPREAD_FACTOR * spread))
    with_logprobs = f", log probabilities within {reference.tolerance:.2g}" if same[0].logprobs else ""
    text = f"{count} of {len(answers)} answers agree{with_logprobs}"
    return Calibration(reference, text, len(answers) - count)


def agrees(reference: Reference, answer: Answer) -> bool:
    """Whether an answer is the reference's: the same text, and the same probabilities within the tolerance."""
    if answer.digest != reference.answer.digest:
        return False
    difference = deviation(reference.answer, answer)
    return difference is None or difference <= reference.tolerance


class Settled(NamedTuple):
    """The result of following up a mismatch."""

    step: Step
    text: str


def settle(repeats: Sequence[bool], siblings: Sequence[bool]) -> Settled:
    """Judge a mismatch by its follow-up.

    Args:
        repeats: whether each repetition on the same GPU agreed with its reference.
        siblings: whether each sibling, asked now, agreed with its own reference.
    """
    deviating = repeats.count(False)
    again = f"{deviating} of {len(repeats)} repetitions differ too"
    if deviating < CONFIRMING:
        return Settled("cleared", f"not repeated: {again}")
    if not siblings:
        return Settled("suspect", f"{again}; there is no GPU of the same kind in this run to compare with")
    if not all(siblings):
        return Settled("suspect", f"{again}, and so do other GPUs of its kind: the environment has changed")
    return Settled("confirmed", f"{again}, while every other GPU of its kind ({len(siblings)}) answers as before")


def outsider(references: dict[str, Reference]) -> str | None:
    """The one GPU of a kind whose reference differs while all others, at least two, agree with each other.

    It computes the same wrong thing each time, which no comparison with itself can show.
    """
    digests = Counter(reference.answer.digest for reference in references.values())
    if len(references) < 3 or len(digests) != 2 or min(digests.values()) != 1:
        return None
    rare = min(digests, key=lambda digest: digests[digest])
    return next(gpu for gpu, reference in references.items() if reference.answer.digest == rare)


def summary(canaries: Sequence[Canary], with_jobs: bool) -> OutputCheck:
    """The output check of one GPU, for the report."""
    steps = Counter(canary.step for canary in canaries)
    told = [canary for canary in canaries if canary.step in ("calibrated", "off")]
    if with_jobs:
        text = "off: with jobs as the load no slot is free of other requests"
    else:
        text = told[-1].text if told else "off: not asked for, or the run ended before"
    known = [canary.deviation for canary in canaries if canary.deviation is not None]
    return OutputCheck(
        state="on" if told and told[-1].step == "calibrated" else "off",
        text=text,
        checks=steps["match"] + steps["mismatch"],
        mismatches=steps["mismatch"],
        confirmed=steps["confirmed"],
        largest_deviation=max(known, default=None),
    )
