"""The verdict on each GPU: a pure function of the evidence.

No work done is never a PASS, and neither is a GPU that nobody could watch. A certain fault outweighs missing evidence:
FAIL before INCONCLUSIVE before PASS_LOW_STRESS before PASS.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec

from obatchd.burnin.journal.records import Consequence, Event
from obatchd.burnin.verdict import stressed
from obatchd.burnin.verdict.evidence import Evidence
from obatchd.burnin.verdict.reasons import (
    COMPARE,
    CORRUPTION,
    DIAGNOSE,
    HOST_LOST,
    LOW_STRESS,
    NOT_BEGUN,
    RETEST,
    WRONG,
    Reason,
)
from obatchd.burnin.verdict.references import of_references
from obatchd.words import counted, three_digits

COLLECT = "Make the file for the vendor: `obatchctl burnin bundle {gpu}`."
_STRESS = "Use a larger model or more slots to load it further, if full stress is wanted."
_EFFICIENCY = "Compare power limit, clocks, fans and temperature with GPUs of its kind."
_SOFTWARE = "Read the log of its Ollama server, and try the GPU with another model before blaming the hardware."
_BUSY_PERCENT = 90.0  # of the slots, from which batch work compares GPUs
_SAME_CONTEXT = 0.02  # by how much of it contexts of two hosts may differ
_FIRST = (*WRONG, NOT_BEGUN, HOST_LOST)  # of reasons alike grave: what they say explains the others
_ORDER: dict[Consequence, int] = {"fail": 0, "inconclusive": 1, "warn": 2, "note": 3}


class Result(StrEnum):
    """How a GPU came through; the order is from best to worst."""

    PASS = "PASS"
    PASS_LOW_STRESS = "PASS_LOW_STRESS"
    INCONCLUSIVE = "INCONCLUSIVE"
    FAIL = "FAIL"


EXIT_CODES = {Result.PASS: 0, Result.PASS_LOW_STRESS: 0, Result.FAIL: 1, Result.INCONCLUSIVE: 2}


class Verdict(msgspec.Struct, frozen=True):
    """The verdict on one GPU, the gravest reason first, and what to do next."""

    result: Result
    reasons: list[Reason]
    action: str


def worst(results: Sequence[Result]) -> Result:
    """The result of a run as a whole; without any GPU nothing was shown."""
    return max(results, key=list(Result).index, default=Result.INCONCLUSIVE)


def judge(every: Sequence[Evidence]) -> list[Verdict]:
    """A verdict for each GPU, in the same order."""
    return [
        _judge(
            evidence,
            [other for other in every if _sibling(evidence, other)],
            [other for other in every if other is not evidence and other.unit.name == evidence.unit.name],
        )
        for evidence in every
    ]


def _sibling(one: Evidence, other: Evidence) -> bool:
    """Whether two GPUs did the same work: the same kind of GPU, model, context and slots, all the time.

    With batch work both must have had enough of it: a speed over empty slots is none of the GPU.
    """
    if one is other or one.prepared is None or other.prepared is None:
        return False
    busy = [e.one_profile and (e.stress.slots_busy_percent or 0) >= _BUSY_PERCENT for e in (one, other)]
    if one.plan.with_jobs and not all(busy):
        return False
    ours, theirs = one.prepared, other.prepared
    same_load = (ours.model, ours.slots) == (theirs.model, theirs.slots) and _same_context(one, other)
    same = same_load and one.unit.name == other.unit.name and ours.server != theirs.server
    return same and one.has_software_of(other)


def _same_context(one: Evidence, other: Evidence) -> bool:
    """Each host measures the context that fills its memory, and a few megabytes more or less in use change it a bit."""
    lengths = [e.prepared.context_length if e.prepared else 0 for e in (one, other)]
    most = 0.0 if one.unit.host == other.unit.host else _SAME_CONTEXT * max(lengths)
    return abs(lengths[0] - lengths[1]) <= most


def _judge(evidence: Evidence, siblings: list[Evidence], of_kind: list[Evidence]) -> Verdict:
    """``siblings`` did the same work for the model, ``of_kind`` are all others of its kind."""
    if any(event.signal == NOT_BEGUN for event in evidence.events):
        reasons = list(_of_events(evidence))
        return Verdict(Result.INCONCLUSIVE, reasons, _action(Result.INCONCLUSIVE, reasons, evidence))
    reasons = [
        *_of_events(evidence),
        *stressed.of_wrong(evidence, of_kind),
        *_of_canaries(evidence),
        *of_references(evidence, siblings),
        *_of_speed(evidence, siblings),
        *stressed.of_speeds(evidence, of_kind),
        *_of_energy(evidence, siblings),
        *_of_work(evidence),
        *stressed.of_work(evidence),
        *stressed.of_ends(evidence),
        *_of_monitoring(evidence),
    ]
    if not any(reason.consequence == "inconclusive" for reason in reasons):
        reasons += _of_stress(evidence)
        reasons += stressed.of_coverage(evidence)
    # Wrong results say more than slow ones.
    reasons.sort(key=lambda reason: (_ORDER[reason.consequence], reason.signal not in _FIRST, reason.at_s or 0.0))
    found = {reason.consequence for reason in reasons}
    if "fail" in found:
        result = Result.FAIL
    elif "inconclusive" in found:
        result = Result.INCONCLUSIVE
    else:
        result = Result.PASS_LOW_STRESS if any(reason.signal == LOW_STRESS for reason in reasons) else Result.PASS
    return Verdict(result, reasons, _action(result, reasons, evidence))


def _action(result: Result, reasons: list[Reason], evidence: Evidence) -> str:
    first = next((reason.action for reason in reasons if reason.action), "")
    if result is Result.FAIL:
        return f"{COLLECT.format(gpu=evidence.unit.called)} {first}".strip()
    if result is Result.INCONCLUSIVE:
        return first or RETEST
    return first if any(reason.consequence == "warn" for reason in reasons) else "None."


def _of_events(evidence: Evidence) -> Iterator[Reason]:
    """The gravest consequence that each signal came to, with the latest words about it."""
    groups: dict[str, list[Event]] = {}
    for event in evidence.events:
        if event.consequence != "note":
            groups.setdefault(event.signal, []).append(event)
    for signal, events in groups.items():
        gravest = min((event.consequence for event in events), key=lambda consequence: _ORDER[consequence])
        last = [event for event in events if event.consequence == gravest][-1]
        yield Reason(gravest, signal, last.text, last.action, events[0].at_s)


def _of_canaries(evidence: Evidence) -> Iterator[Reason]:
    """Reasons from the output checks: see :mod:`obatchd.burnin.verdict.canary` for the steps."""
    steps = Counter(canary.step for canary in evidence.canaries)
    firsts = {canary.step: canary for canary in reversed(evidence.canaries)}
    if (confirmed := firsts.get("confirmed")) is not None:
        text = f"wrong output, confirmed: {confirmed.text}"
        yield Reason("fail", CORRUPTION, text, DIAGNOSE, confirmed.at_s)
    elif (suspect := firsts.get("suspect")) is not None:
        text = f"its output differs and no second GPU could settle it: {suspect.text}"
        yield Reason("inconclusive", "output_suspect", text, DIAGNOSE, suspect.at_s)
    elif (mismatch := firsts.get("mismatch")) is not None:
        checks = steps["match"] + steps["mismatch"]
        text = f"{steps['mismatch']} of {checks} output checks differed once and not again"
        yield Reason("warn", "output_mismatch", text, "Watch it: run the burn-in again.", mismatch.at_s)


def _of_speed(evidence: Evidence, siblings: list[Evidence]) -> Iterator[Reason]:
    limits, own = evidence.plan.limits, evidence.speed
    # The error at the edges of the window must be small against the difference that is looked for.
    usable_percent = limits.slower_warn_percent / 2
    if own is None or own.uncertain_percent > usable_percent:
        return
    others = [s.speed.tokens_per_s for s in siblings if s.speed and s.speed.uncertain_percent <= usable_percent]
    if others:
        usual, against = statistics.median(others), f"the median of {len(others)} GPUs like it"
    elif evidence.early_speed is not None and not evidence.plan.with_jobs:
        usual, against = evidence.early_speed.tokens_per_s, "its own first hour"
    else:
        return
    slower_percent = 100 * (1 - own.tokens_per_s / usual)
    if slower_percent > limits.slower_warn_percent:
        text = (
            f"{own.tokens_per_s:.1f} tokens/s, {slower_percent:.1f} % less than {against} ({usual:.1f}; limits "
            f"{limits.slower_warn_percent:g} % and {limits.slower_fail_percent:g} %)"
        )
        yield Reason("fail" if slower_percent > limits.slower_fail_percent else "warn", "slow", text, COMPARE)


def _of_energy(evidence: Evidence, siblings: list[Evidence]) -> Iterator[Reason]:
    """A note and never more: nobody publishes how many fewer tokens per joule are a fault."""
    limits, own = evidence.plan.limits, evidence.work.tokens_per_j
    others = [s.work.tokens_per_j for s in siblings if s.work.tokens_per_j]
    speed = evidence.speed
    if own is None or not others or speed is None or speed.uncertain_percent > limits.slower_warn_percent / 2:
        return
    usual = statistics.median(others)
    fewer_percent = 100 * (1 - own / usual)
    if fewer_percent > limits.slower_fail_percent:
        text = (
            f"{three_digits(own)} tokens/J, {fewer_percent:.1f} % fewer than the median of "
            f"{counted(len(others), 'GPU')} like it ({three_digits(usual)}; told above "
            f"{limits.slower_fail_percent:g} %, and no fault by itself)"
        )
        yield Reason("note", "inefficient", text, _EFFICIENCY)


def _of_work(evidence: Evidence) -> Iterator[Reason]:
    work, ready = evidence.work, evidence.prepared
    share = 100 * evidence.stress.loaded_s / max(evidence.asked_s, 1e-3)
    least = evidence.plan.limits.least_loaded_percent
    modelled = not evidence.plan.phases or evidence.plan.with_jobs or "model" in evidence.plan.loads
    if modelled and not work.tokens and ready is not None and ready.problem:
        yield Reason("inconclusive", "not_prepared", ready.problem, _SOFTWARE)
    elif modelled and not work.tokens:
        yield Reason("inconclusive", "no_work", "no token was answered: nothing was tested", _SOFTWARE)
    elif share < least and not evidence.ended:  # else its loads ended before their time, which says more
        text = f"under load for {share:.0f} % of the time asked for (at least {least:g} % is needed)"
        yield Reason("inconclusive", "short_load", text, RETEST)
    if work.failed:
        text = f"{work.failed} of {work.failed + work.requests} requests failed"
        yield Reason("warn", "failed_requests", text, _SOFTWARE)


def _of_monitoring(evidence: Evidence) -> Iterator[Reason]:
    share = 100 * evidence.stress.seen_s / evidence.elapsed_s if evidence.elapsed_s else 100.0
    least = evidence.plan.limits.least_seen_percent
    if share < least:
        text = (
            f"readings for only {share:.0f} % of the run (at least {least:g} % is needed): what happened in the rest "
            "is not known"
        )
        yield Reason("inconclusive", "monitoring_lost", text, "Look at nvidia-smi and dmesg, then run it again.")


def _of_stress(evidence: Evidence) -> list[Reason]:
    limits, stress, reasons = evidence.plan.limits, evidence.stress, []
    loaded_percent = 100 * stress.loaded_s / max(evidence.asked_s, evidence.elapsed_s)
    checks = (
        ("loaded time", "", loaded_percent, limits.stress_loaded_percent, True),
        ("utilisation", "", stress.utilisation_percent, limits.stress_utilisation_percent, True),
        ("median power", " of its limit", evidence.power_percent, limits.stress_power_percent, False),
    )
    for name, of, value, least, accepted in checks:
        text = f"{name} cannot be read: how hard it was loaded is not known"
        if value is not None:
            text = f"{name} {value:.0f} %{of}, below {least:g} %"
            if value >= least:
                continue
            if accepted and evidence.plan.strict:
                return [Reason("inconclusive", LOW_STRESS, f"{text}, which acceptance needs", _STRESS)]
        reasons.append(Reason("note", LOW_STRESS, text))
    filled = stress.vram_percent
    covered = evidence.loads.memory is not None
    if not covered and filled is not None and filled < limits.vram_target_percent and not evidence.plan.with_jobs:
        text = f"{filled:.0f} % of its memory was in use; the rest was not tested"
        reasons.append(Reason("note", "vram_untested", text, _STRESS))
    return reasons
