"""Reasons from the loads beside the model. docs/burnin.md names the source of each criterion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from obatchd.burnin.journal.records import Consequence, WrongResult
from obatchd.burnin.verdict.evidence import Evidence
from obatchd.burnin.verdict.reasons import COMPARE, DIAGNOSE, LOW_STRESS, WRONG_MEMORY, WRONG_RESULT, Reason
from obatchd.documents.burnin.loads import StressLoads
from obatchd.words import binary_size, counted, three_digits

_ABSENT = ("no_library", "no_device")  # the loads cannot be had; no fault
_LIKE = 3  # GPUs of which one can be outvoted by the others
_MEMORY = (
    "Take this GPU out of production: its memory does not hold what is written to it. Reset it (`sudo nvidia-smi "
    "--gpu-reset -i {gpu}`) and run the burn-in again; if that finds it again, ask the vendor for a replacement (RMA)."
)
_LINK = (
    "Seat the card, its riser and its NVLink bridges again, and compare PCIe generation, width and topology "
    "(nvidia-smi topo -m) with GPUs of its kind; exchange slots to see whether the slowness follows the card."
)
_HUNG = (
    "Look at dmesg and nvidia-smi, reset the GPU or reboot the host, then run the burn-in again; a GPU whose driver "
    "hangs again under load is for the vendor."
)
_ABSENT_NOW = "Put that right, and run the burn-in again; nothing was found against the GPU itself."
_ENDED = {
    **dict.fromkeys(_ABSENT, _ABSENT_NOW),
    "hung": _HUNG,
    "died": "Look at dmesg (out of memory? an XID?) and at the log of obatchd, then run the burn-in again.",
    "memory_limit": "Update the driver and the stress library, or raise burnin.stress_memory_mib; then run it again.",
}
_LINKS = {"to_host": "to the host", "from_host": "from the host", "to_peer": "to {peer}"}


def of_wrong(evidence: Evidence, siblings: Sequence[Evidence]) -> Iterator[Reason]:
    """Wrong results, and wrong words of memory."""
    loads, gpu = evidence.loads, evidence.unit.index
    first = {load: _first(evidence.wrong, load) for load in ("compute", "memory")}
    if loads.wrong_tiles:
        text = f"{counted(loads.wrong_tiles, 'wrong result')} of matrix products{_where(first['compute'])}"
        yield Reason("fail", WRONG_RESULT, text, DIAGNOSE, _at(first["compute"]))
    else:
        yield from _of_firsts(evidence, siblings)
    if loads.wrong_words:
        text = f"{counted(loads.wrong_words, 'wrong word')} of memory{_where(first['memory'])}"
        yield Reason("fail", WRONG_MEMORY, text, _MEMORY.format(gpu=gpu), _at(first["memory"]))


def _first(wrong: Sequence[WrongResult], load: str) -> WrongResult | None:
    return next((each for each in wrong if each.load == load), None)


def _at(record: WrongResult | None) -> float | None:
    return record.at_s if record else None


def _where(record: WrongResult | None) -> str:
    if record is None:
        return ""
    return f"; the first: {record.place} ({record.pattern}: {record.found}, not {record.expected})"


def _of_firsts(evidence: Evidence, siblings: Sequence[Evidence]) -> Iterator[Reason]:
    """Products that are wrong each time in the same way: the same product has another result than on its siblings."""
    unclear = None
    for precision, own in evidence.firsts.items():
        others = [s.firsts[precision] for s in siblings if precision in s.firsts and _same_library(evidence, s)]
        like = others.count(own)
        most = max(Counter(other for other in others if other != own).values(), default=0)
        if like >= most:
            continue
        if len(others) == most >= _LIKE - 1:
            text = f"its products in {precision} repeat themselves, but all {most} others of its kind agree on "
            yield Reason("fail", WRONG_RESULT, f"{text}another result", DIAGNOSE)
            return
        text = f"the result of its products in {precision} {_beside(like, most, len(others))}, and nobody can say which"
        unclear = unclear or Reason("inconclusive", "results_differ", text, DIAGNOSE)
    if unclear is not None:
        yield unclear


def _beside(like: int, most: int, others: int) -> str:
    """How a result stands to those of ``others`` GPUs: ``like`` have the same, ``most`` agree on another one."""
    if like:
        return f"is that of {counted(like, 'other GPU')} of its kind, but {most} agree on another: some are wrong"
    if others == 1:
        return "differs from that of the other GPU of its kind: one of them is wrong"
    return f"differs from those of all {others} others of its kind, which differ among themselves: some are wrong"


def _same_library(one: Evidence, other: Evidence) -> bool:
    return one.loads.library == other.loads.library and one.has_driver_of(other)


def of_ends(evidence: Evidence) -> Iterator[Reason]:
    """Loads that ended before their time. Nobody knows what the rest of them would have found."""
    for ended in evidence.ended:
        words = f"products and patterns: {ended.text}"
        if ended.code == "bad_memory":
            text = f"the driver reported an uncorrectable error of its memory: {ended.text}"
            yield Reason("fail", "memory_error", text, _MEMORY.format(gpu=evidence.unit.index), ended.at_s)
        elif ended.code == "stopped":
            yield Reason("note", "stress_stopped", words, at_s=ended.at_s)
        elif ended.code not in _ABSENT or _was_idle(evidence):
            yield Reason("inconclusive", f"stress_{ended.code}", words, _ENDED.get(ended.code, _HUNG), ended.at_s)
    for outside in evidence.loads.outside:
        signal = outside.program.replace("-", "_")
        text, by_hand = f"{outside.program} {outside.text}", f"Run {outside.program} by hand and read its output."
        match outside.outcome:
            case "wrong_results" | "failed":
                yield Reason("fail", f"{signal}_failed", text, DIAGNOSE)
            case "not_done":
                yield Reason("inconclusive", f"{signal}_not_done", text, by_hand)
            case "partly":
                yield Reason("note", f"{signal}_partly", text)


def _was_idle(evidence: Evidence) -> bool:
    """Whether loads that could not be had left the GPU idle for so long that nothing was shown."""
    least = evidence.plan.limits.least_loaded_percent
    return 100 * evidence.stress.loaded_s < least * max(evidence.asked_s, 1e-3)


class _Slow(NamedTuple):
    slower_percent: float
    text: str


def of_speeds(evidence: Evidence, others: Sequence[Evidence]) -> Iterator[Reason]:
    """Products, memory and links against GPUs like it; of several the slowest."""
    limits, names = evidence.plan.limits, {other.unit.uuid: f"GPU {other.unit.index}" for other in others}
    for signal, slow, action in (
        ("slow_compute", _slow_products(evidence.loads), COMPARE),
        ("slow_memory", _slow_memory(evidence.loads), COMPARE),
        ("slow_link", _slow_links(evidence.loads, names), _LINK),
    ):
        worst = max(slow, default=None)
        if worst is None or worst.slower_percent <= limits.slower_warn_percent:
            continue
        consequence: Consequence = "fail" if worst.slower_percent > limits.slower_fail_percent else "warn"
        text = (
            f"{worst.text}, {worst.slower_percent:.1f} % less than the median of GPUs like it (limits "
            f"{limits.slower_warn_percent:g} % and {limits.slower_fail_percent:g} %)"
        )
        yield Reason(consequence, signal, text, action)


def _slow_products(loads: StressLoads) -> Iterator[_Slow]:
    for each in loads.products:
        if each.of_median_percent is not None and each.operations_per_s:
            speed = three_digits(each.operations_per_s / 1e12)
            yield _Slow(100 - each.of_median_percent, f"{speed} TFLOP/s of {each.precision}")


def _slow_memory(loads: StressLoads) -> Iterator[_Slow]:
    memory = loads.memory
    if memory is not None and memory.of_median_percent is not None and memory.bytes_per_s:
        yield _Slow(100 - memory.of_median_percent, f"{three_digits(memory.bytes_per_s / 1e9)} GB/s of memory")


def _slow_links(loads: StressLoads, names: Mapping[str, str]) -> Iterator[_Slow]:
    """``names`` of peers, by UUID."""
    for each in loads.links:
        if each.of_median_percent is not None:
            way = _LINKS[each.kind].format(peer=names.get(each.peer, each.peer))
            yield _Slow(100 - each.of_median_percent, f"{three_digits(each.bytes_per_s / 1e9)} GB/s {way}")


def of_coverage(evidence: Evidence) -> Iterator[Reason]:
    """What a pass would not cover; only runs that knew other loads than the model are judged."""
    plan, memory = evidence.plan, evidence.loads.memory
    if not plan.phases or not evidence.over:
        return
    absent = [ended.text for ended in evidence.ended if ended.code in _ABSENT]
    if plan.left_out or absent:
        names = " and ".join(plan.left_out or ("compute", "memory"))
        loads = "load" if len(plan.left_out) == 1 else "loads"
        text = f"without the {loads} {names}: {next(iter([*plan.left_out.values(), *absent]))}"
        yield Reason("note", LOW_STRESS, text)
    if "memory" not in plan.loads:
        if "memory" not in plan.left_out:
            yield Reason("note", LOW_STRESS, "its memory was not covered: the run was without the load memory")
        return
    if absent:
        return
    least, percent = plan.limits.covered_percent, memory.covered_percent if memory else None
    # Half a percent is what blocks of memory leave over.
    if memory is None or not memory.covered_bytes:
        yield Reason("note", LOW_STRESS, "its memory was not covered: no pattern was read back from it")
    elif percent is not None and percent < least - 0.5:
        text = f"{binary_size(memory.covered_bytes)} of its memory were covered, {percent:.1f} % of what was free"
        yield Reason("note", LOW_STRESS, f"{text}, below {least:g} %")


def of_work(evidence: Evidence) -> Iterator[Reason]:
    """Loads that did nothing although they ran."""
    begun = {load for phase in evidence.phases for load in phase.loads}
    if evidence.over and not evidence.ended and "compute" in begun and not evidence.loads.products:
        yield Reason("inconclusive", "no_work", "no product was computed: nothing was tested", DIAGNOSE)
