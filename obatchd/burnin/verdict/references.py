"""Reasons from the answers that GPUs of several hosts give to the same prompt.

On one host :mod:`obatchd.burnin.run.checker` compares them while the run goes on. A card that is alone in its host, and
computes the same wrong answer each time, differs from those of other hosts only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from obatchd.burnin.verdict.evidence import Evidence
from obatchd.burnin.verdict.reasons import CORRUPTION, DIAGNOSE, Reason
from obatchd.words import counted

_LIKE = 2  # others that agree with each other: with one nobody can say which of the two is wrong
_FOLLOW = (
    "Run the burn-in again with this card in another host: a difference that stays with the host is its software's."
)


def of_references(evidence: Evidence, siblings: Sequence[Evidence]) -> Iterator[Reason]:
    """Another answer than all ``siblings``, which did the same work, agree on.

    It fails the GPU only where one of its own host gives the answer of the others: else the host may be the reason.
    """
    others = [s for s in siblings if s.reference and s.has_driver_of(evidence)]
    elsewhere = [s for s in others if s.unit.host != evidence.unit.host]
    told = any(canary.step == "confirmed" for canary in evidence.canaries)
    if told or not evidence.reference or not elsewhere or len(others) < _LIKE:
        return
    answers = {s.reference for s in others}
    if evidence.reference in answers or len(answers) > 1:
        return
    text = f"it repeats itself, but all {counted(len(others), 'other GPU')} of its kind agree on another answer"
    if len(elsewhere) < len(others):
        yield Reason("fail", CORRUPTION, f"wrong output, confirmed: {text}", DIAGNOSE)
    else:
        yield Reason("inconclusive", "answers_differ", f"{text}, and no other GPU of its host can settle it", _FOLLOW)
