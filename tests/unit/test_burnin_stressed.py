"""What the records of products, patterns and links come to: evidence, verdict, words, next action."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from burnin_support import HOUR_S, START_S, Card, Stressed, begin, make_plan, simulate, uuid

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Begun, OutsideEnded, Record, WrongResult
from obatchd.burnin.report import bundle, reading, report
from obatchd.burnin.report.compare import compare
from obatchd.burnin.report.html import render
from obatchd.burnin.report.terminal import comparison, summary
from obatchd.burnin.run import plan as plans
from obatchd.burnin.run.plan import Asked
from obatchd.documents.burnin.plan import Phase
from obatchd.documents.burnin.report import BurninGpuPages, BurninReport
from obatchd.errors import ConfigError
from obatchd.settings.settings import Settings

TILE = WrongResult(0, "", "compute", "tile 12,3 of 64×64, FP16", "differs from the first result", "0x41", "0x40")
WORD = WrongResult(0, "", "memory", "address 0x7f0000000040, bit 5", "walking ones", "0x1", "0x21")
NO_PATTERNS = "its memory was not covered: the run was without the load memory"
SETTINGS = Settings(model="llama3.3")
ABSENT = {"compute": "install it with pip install 'obatchd[stress]'", "memory": "install it"}


def judged(stressed: Stressed, *more: Record, hours: float = 0.4, others: int = 3) -> list[BurninGpuPages]:
    *records, ended = simulate([Card(stressed=stressed), *(Card() for _ in range(others))], hours)
    return report.build([*records, *more, ended]).gpus


# --- the plan ---------------------------------------------------------------------------------------------------------


def loads_of(phases: list[Phase]) -> list[tuple[str, ...]]:
    return [tuple(phase.loads) for phase in phases]


def test_a_profile_says_which_loads_in_which_order() -> None:
    quick = plans.make("r", Asked(profile="quick"), ["GPU-1"], SETTINGS).phases
    assert quick == [Phase(["model"], 0.6), Phase(["compute", "memory"], 0.4)]
    night = plans.make("r", Asked(), ["GPU-1"], SETTINGS).phases
    together = ("model", "compute", "memory")
    assert loads_of(night) == [("model",), ("compute",), ("memory",), together]
    assert sum(phase.part for phase in night) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("load", "phases"),
    [
        (["model"], [("model",)]),
        (["compute", "memory"], [("compute",), ("memory",), ("compute", "memory")]),
        (["memory"], [("memory",)]),
        (["dcgm", "gpu-burn"], [("dcgm",), ("gpu-burn",)]),
        (["model", "dcgm"], [("model",), ("dcgm",)]),
    ],
)
def test_loads_that_are_asked_for_and_no_others(load: list[str], phases: list[tuple[str, ...]]) -> None:
    plan = plans.make("r", Asked(load=load), ["GPU-1"], SETTINGS)
    assert loads_of(plan.phases) == phases
    assert sum(phase.part for phase in plan.phases) == pytest.approx(1.0)
    assert bool(plan.canary_s) == bool(plan.model) == ("model" in load)


def test_a_load_that_cannot_be_had_is_refused_when_asked_for_and_left_out_of_a_profile() -> None:
    with pytest.raises(ConfigError, match=r"the load compute cannot be had: .*pip install 'obatchd\[stress\]'"):
        plans.make("r", Asked(load=["model", "compute"]), ["GPU-1"], SETTINGS, missing=ABSENT)
    plan = plans.make("r", Asked(), ["GPU-1"], SETTINGS, missing=ABSENT)
    assert plan.phases == [Phase(["model"], 1.0)] and plan.left_out == ABSENT
    with pytest.raises(ConfigError, match="no load 'heat'; there are: model, compute, memory, dcgm, gpu-burn"):
        plans.make("r", Asked(load=["heat"]), ["GPU-1"], SETTINGS)
    with pytest.raises(ConfigError, match="--with-jobs takes jobs as the load"):
        plans.make("r", Asked(load=["model"], with_jobs=True), ["GPU-1"], SETTINGS)


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.59, 0), (0.6, 1), (0.99, 1), (1.0, 1), (7.0, 1)])
def test_the_phase_follows_from_the_time_alone(share: float, number: int) -> None:
    phases = plans.make("r", Asked(profile="quick"), ["GPU-1"], SETTINGS).phases
    assert plans.phase_at(phases, share) == number


# --- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stressed", "signal", "text", "action"),
    [
        (Stressed(wrong=[(900, TILE)]), "wrong_result", "tile 12,3 of 64×64, FP16 (differs from the first", "dcgmi"),
        (Stressed(wrong=[(900, WORD), (950, WORD)]), "wrong_memory", "2 wrong words of memory; the first: address 0x7f",
         "does not hold"),
        (Stressed(first="other"), "wrong_result", "all 3 others of its kind agree on another result", "dcgmi"),
        (Stressed(compute=0.88), "slow_compute", " TFLOP/s of ", "Compare clocks"),
        (Stressed(memory=0.85), "slow_memory", " GB/s of memory, 15.", "Compare clocks"),
        (Stressed(link=0.5), "slow_link", " GB/s to the host, 50.", "Seat the card"),
        (Stressed(ended=(900, "bad_memory", "uncorrectable ECC error")), "memory_error", "uncorrectable", "reset"),
    ],
)  # fmt: skip
def test_a_fault_that_a_load_finds_fails_its_gpu_alone(
    stressed: Stressed, signal: str, text: str, action: str
) -> None:  # fmt: skip
    bad, *siblings = judged(stressed)
    assert (bad.verdict, bad.reasons[0].signal) == ("FAIL", signal), bad.reasons
    assert text in bad.reasons[0].text
    assert action in bad.action and "burnin bundle 0" in bad.action
    assert {gpu.verdict for gpu in siblings} == {"PASS"}, [gpu.reasons for gpu in siblings]


def test_first_results_that_all_differ_are_no_pass() -> None:
    """Two of three cards are wrong in different ways: which one is right cannot be seen."""
    document = report.build(simulate([Card(stressed=Stressed(first=first)) for first in ("one", "two", "three")], 0.4))
    for gpu in document.gpus:
        assert gpu.verdict == "INCONCLUSIVE" and [r.signal for r in gpu.reasons] == ["results_differ"]
        assert "differ among themselves" in gpu.reasons[0].text and "dcgmi" in gpu.action
    two = report.build(simulate([Card(stressed=Stressed(first=first)) for first in ("one", "two")], 0.4))
    assert [gpu.verdict for gpu in two.gpus] == ["INCONCLUSIVE"] * 2
    assert "that of the other GPU of its kind: one of them is wrong" in two.gpus[0].reasons[0].text
    firsts = ("good", "good", "one", "two")
    four = report.build(simulate([Card(stressed=Stressed(first=first)) for first in firsts], 0.4))
    assert [gpu.verdict for gpu in four.gpus] == ["PASS", "PASS", "INCONCLUSIVE", "INCONCLUSIVE"]


@pytest.mark.parametrize("good", [2, 5])
def test_two_cards_that_share_a_result_that_is_not_more_common_than_another_do_not_pass(good: int) -> None:
    firsts = ["good"] * good + ["other", "other"]
    gpus = report.build(simulate([Card(stressed=Stressed(first=first)) for first in firsts], 0.4)).gpus
    of_good = "INCONCLUSIVE" if good == 2 else "PASS"
    assert [gpu.verdict for gpu in gpus] == [of_good] * good + ["INCONCLUSIVE"] * 2
    text = gpus[-1].reasons[0].text
    assert f"is that of 1 other GPU of its kind, but {good} agree on another: some are wrong" in text, text


def test_a_slow_link_to_one_peer_is_found_at_both_of_its_ends_and_a_slow_gpu_at_one() -> None:
    cards = [Card() for _ in range(4)]
    cards[1].stressed.peers = lambda peer, speed: speed / 2 if peer == 2 else speed
    cards[2].stressed.peers = lambda peer, speed: speed / 2 if peer == 1 else speed
    gpus = report.build(simulate(cards, 0.4)).gpus
    assert [gpu.verdict for gpu in gpus] == ["PASS", "FAIL", "FAIL", "PASS"]
    assert gpus[1].reasons[0].text.startswith("195 GB/s to GPU 2, 50.0 % less")
    cards = [Card() for _ in range(4)]
    for number, card in enumerate(cards):  # everything to and from GPU 3 is slow
        card.stressed.peers = lambda peer, speed, own=number: speed / 2 if 3 in (peer, own) else speed
    assert [gpu.verdict for gpu in report.build(simulate(cards, 0.4)).gpus] == ["PASS", "PASS", "PASS", "FAIL"]


@pytest.mark.parametrize(
    ("ended", "signal", "words"),
    [
        ((900.0, "hung", "the process said nothing for 30 s and was killed"), "stress_hung", "reset the GPU"),
        ((900.0, "died", "the process died of signal 9"), "stress_died", "dmesg"),
        ((900.0, "memory_limit", "took 5 GiB of the host's memory"), "stress_memory_limit", "stress_memory_mib"),
        ((900.0, "device_lost", "cudaErrorDevicesUnavailable"), "stress_device_lost", "reset the GPU"),
    ],
)
def test_loads_that_end_before_their_time_leave_it_open(
    ended: tuple[float, str, str], signal: str, words: str
) -> None:  # fmt: skip
    bad, *siblings = judged(Stressed(ended=ended))
    assert bad.verdict == "INCONCLUSIVE" and signal in {reason.signal for reason in bad.reasons}
    assert words in bad.action and ended[2] in bad.stress_loads.ended
    assert {gpu.verdict for gpu in siblings} == {"PASS"}


def test_a_card_that_cannot_be_had_for_its_loads_is_no_pass_without_work() -> None:
    taken = (1.0, "no_device", "the card is in exclusive mode, and another process has it")
    plan = make_plan(2, 0.4, load=["compute", "memory"])
    bad, sibling = report.build(simulate([Card(stressed=Stressed(ended=taken)), Card()], 0.4, plan=plan)).gpus
    assert (bad.verdict, bad.reasons[0].signal) == ("INCONCLUSIVE", "stress_no_device"), bad.reasons
    assert "exclusive mode" in bad.reasons[0].text and "again" in bad.action
    assert sibling.verdict == "PASS"
    # Most of the time it was loaded: the verdict says what was not.
    plan = make_plan(2, 0.4, phases=[Phase(["model"], 0.9), Phase(["compute", "memory"], 0.1)])
    bad, sibling = report.build(simulate([Card(stressed=Stressed(ended=taken)), Card()], 0.4, plan=plan)).gpus
    assert bad.verdict == "PASS_LOW_STRESS" and any("exclusive mode" in text for text in low(bad))


def low(gpu: BurninGpuPages) -> list[str]:
    return [reason.text for reason in gpu.reasons if reason.signal == "low_stress"]


def test_memory_that_was_not_covered_is_no_plain_pass() -> None:
    bad, *siblings = judged(Stressed(covered=0.8))
    assert bad.verdict == "PASS_LOW_STRESS" and {gpu.verdict for gpu in siblings} == {"PASS"}
    assert low(bad) == ["63.2 GiB of its memory were covered, 80.0 % of what was free, below 95 %"]


def test_without_the_library_a_profile_passes_with_low_stress_and_says_why() -> None:
    plan = plans.make("r", Asked(duration="24m"), [uuid(0)], SETTINGS, missing=ABSENT)
    [gpu] = report.build(simulate([Card()], 0.4, plan=plan)).gpus
    assert gpu.verdict == "PASS_LOW_STRESS"
    assert low(gpu) == ["without the loads compute and memory: install it with pip install 'obatchd[stress]'"]


def test_loads_without_the_memory_pass_with_low_stress() -> None:
    plan = make_plan(1, 0.4, load=["model", "compute"])
    [gpu] = report.build(simulate([Card()], 0.4, plan=plan)).gpus
    assert (gpu.verdict, low(gpu)) == (
        "PASS_LOW_STRESS",
        ["its memory was not covered: the run was without the load memory"],
    )


def test_power_counts_in_the_phase_with_the_most() -> None:
    def model_sips(at_s: float, fields: dict[str, object]) -> None:
        fields["power_w"] = 300.0 if at_s < 0.4 * 0.4 * HOUR_S else 680.0

    def never(at_s: float, fields: dict[str, object]) -> None:
        fields["power_w"] = 300.0

    one, other = report.build(simulate([Card(reading=model_sips), Card(reading=never)], 0.4)).gpus
    assert one.verdict == "PASS"
    assert [(phase.loads, phase.power_percent) for phase in one.phases[:2]] == [(["model"], 42.9), (["compute"], 97.1)]
    assert (other.verdict, low(other)) == ("PASS_LOW_STRESS", ["median power 43 % of its limit, below 75 %"])


def test_a_run_without_a_model_needs_no_tokens() -> None:
    plan = make_plan(2, 0.4, load=["compute", "memory"])
    gpus = report.build(simulate([Card(), Card()], 0.4, plan=plan)).gpus
    assert {gpu.verdict for gpu in gpus} == {"PASS"}, gpus[0].reasons
    assert {gpu.work.tokens for gpu in gpus} == {0}


def test_programs_of_others_count_by_what_they_tested() -> None:
    failed = OutsideEnded(START_S + 900, uuid(0), "gpu-burn", "wrong_results", "computed 12 wrong results")
    nothing = OutsideEnded(START_S + 900, uuid(1), "dcgm", "not_done", "tested nothing")
    passed = OutsideEnded(START_S + 900, uuid(2), "dcgm", "partly", "passed 3 tests and left out memory")
    gpus = judged(Stressed(), failed, nothing, passed)
    assert [gpu.verdict for gpu in gpus] == ["FAIL", "INCONCLUSIVE", "PASS", "PASS"]
    assert gpus[0].reasons[0].text == "gpu-burn computed 12 wrong results"
    assert gpus[1].reasons[0].signal == "dcgm_not_done"


# --- the figures ------------------------------------------------------------------------------------------------------


def test_figures_are_of_the_time_without_a_model() -> None:
    loads = judged(Stressed())[0].stress_loads
    assert loads.library == "cuBLAS 12.8"
    assert [each.precision for each in loads.products] == ["FP32", "TF32", "FP16", "BF16"]
    assert loads.products[2].operations_per_s == pytest.approx(700e12, rel=0.01)
    assert loads.products[2].of_median_percent == pytest.approx(100, abs=2)
    assert loads.memory is not None
    assert (loads.memory.covered_percent, loads.memory.of_card_percent) == (96.0, 94.8)
    assert loads.memory.bytes_per_s == pytest.approx(2.6e12, rel=0.01)
    assert {(link.kind, bool(link.peer)) for link in loads.links} == {
        ("to_host", False), ("from_host", False), ("to_peer", True),
    }  # fmt: skip


def test_series_have_columns_for_the_loads_where_there_were_any() -> None:
    gpu = judged(Stressed())[0]
    series = gpu.series
    assert len(series.operations_per_s) == len(series.covered_bytes) == len(series.temp_c)
    assert max(series.covered_bytes) == int(0.96 * 79 * 2**30)
    old = report.build(simulate([Card()], 0.4, plan=make_plan(1, 0.4, load=["model"]))).gpus[0]
    assert old.series.operations_per_s == old.series.covered_bytes == []


def test_speed_of_answers_is_that_of_the_model_alone() -> None:
    gpu = judged(Stressed(), hours=1.0)[0]
    assert gpu.work.tokens_per_s == pytest.approx(400, rel=0.02)


def test_an_exchange_of_loads_is_no_part_of_the_run() -> None:
    records = simulate([Card()], 0.4)
    half = [
        msgspec.structs.replace(record, between=True) if number % 2 and isinstance(record, report.Bucket) else record
        for number, record in enumerate(records)
    ]
    whole, fewer = report.build(records), report.build(half)
    assert fewer.elapsed_s < 0.7 * whole.elapsed_s
    assert fewer.gpus[0].stress.loaded_s < 0.7 * whole.gpus[0].stress.loaded_s


def test_a_journal_of_an_earlier_version_reads_as_before() -> None:
    plan = make_plan(1, 0.4, phases=[])
    records = simulate([Card()], 0.4, plan=plan)
    lines = [msgspec.json.encode(record) for record in records]
    begun = msgspec.json.decode(lines[0])
    for name in ("phases", "memory_percent", "left_out"):
        del begun["plan"][name]
    del begun["plan"]["limits"]["covered_percent"]
    old = [msgspec.json.decode(line, type=journal.Record) for line in [msgspec.json.encode(begun), *lines[1:]]]
    assert isinstance(old[0], Begun) and old[0].plan.phases == []
    [gpu] = report.build(old).gpus
    assert gpu.verdict == "PASS" and gpu.phases == [] and gpu.stress_loads.products == []


def test_a_run_in_progress_is_not_blamed_for_what_is_to_come() -> None:
    records = simulate([Card(), Card()], 0.2, plan=make_plan(2, 0.6))[:-1]
    assert {gpu.verdict for gpu in report.build(records).gpus} == {"PASS"}
    assert report.build(begin(make_plan(1, 1.0), [Card()])[:1]).verdict == "INCONCLUSIVE"


# --- shown ------------------------------------------------------------------------------------------------------------


def named(name: str, document: BurninReport) -> BurninReport:
    document.host = msgspec.structs.replace(document.host, hostname=name)
    return document


def without_stress(document: BurninReport) -> BurninReport:
    """As an earlier version wrote it."""
    old = msgspec.to_builtins(document)
    for field in ("phases",):
        del old[field]
        del old["plan"][field]
    for gpu in old["gpus"]:
        del gpu["stress_loads"], gpu["phases"]
        for column in ("operations_per_s", "checked_bytes_per_s", "covered_bytes"):
            del gpu["series"][column]
    return reading.typed(old, BurninReport)


def test_a_report_with_these_figures_compares_with_one_without_them() -> None:
    cards = [Card(), Card(stressed=Stressed(memory=0.85)), Card()]
    new, old = report.build(simulate(cards, 0.4)), without_stress(report.build(simulate([Card(), Card()], 0.4)))
    assert "matrix products" not in summary(old) and max(map(len, summary(old).splitlines())) <= 80
    render(old)
    compared = compare([named("new", new), named("old", old)])
    [group] = compared.groups
    judged, slow = {row.judgement for row in group.gpus if row.index != 1}, group.gpus[1].judgement
    assert judged == {"as the others"} and re.match(r"FAIL: 1[45]\.\d % slower \(memory\)$", slow)
    assert group.gpus[3].operations_per_s == {} and group.gpus[3].covered_bytes is None
    assert group.gpus[0].link_bytes_per_s.keys() == {"to_host", "from_host", "to_peer"}
    shown = comparison(compared)
    assert "TFLOP/S" in shown and "75.8 GiB" in shown


def test_a_host_that_is_slow_as_a_whole_in_one_thing_is_told() -> None:
    fast, slow = (
        report.build(simulate([Card(stressed=Stressed(link=link)) for _ in range(2)], 0.4)) for link in (1.0, 0.5)
    )
    assert {gpu.verdict for gpu in slow.gpus} == {"PASS"}
    [group] = compare([named("fast", fast), named("slow", slow)]).groups
    assert group.hosts_fail and "slow 20261124-180000 as a whole is" in group.hosts[0]
    assert "link" in group.hosts[0]


def test_runs_without_a_model_compare_by_products() -> None:
    plan = make_plan(2, 0.4, load=["compute", "memory"])
    documents = [report.build(simulate([Card(), Card()], 0.4, plan=plan)) for _ in range(2)]
    compared = compare([named("one", documents[0]), named("two", documents[1])])
    assert compared.verdict == "PASS" and compared.groups[0].tokens_per_s is None
    assert "no model" in comparison(compared)


def test_nobody_is_slow_in_a_comparison_because_one_of_two_others_is_fast() -> None:
    one, two, fast = (report.build(simulate([Card(stressed=Stressed(link=link))], 0.4)) for link in (1.0, 1.0, 1.3))
    [group] = compare([named("one", one), named("two", two), named("fast", fast)]).groups
    assert [row.stress_of_median_percent["to_host"] for row in group.gpus] == [100.0, 100.0, 130.0]
    assert {row.judgement for row in group.gpus} == {"as the others"}


def test_products_of_two_versions_of_the_library_are_not_compared() -> None:
    fast, slow = (
        report.build(simulate([Card(stressed=Stressed(compute=speed)) for _ in range(2)], 0.4)) for speed in (1.0, 0.8)
    )
    assert compare([named("one", fast), named("two", slow)]).verdict == "FAIL"
    for gpu in slow.gpus:
        gpu.stress_loads.library = "cuBLAS 13.1"
    compared = compare([named("one", fast), named("two", slow)])
    [group] = compared.groups
    assert compared.verdict == "PASS" and {row.judgement for row in group.gpus} == {"as the others"}
    assert {row.library for row in group.gpus} == {"cuBLAS 12.8", "cuBLAS 13.1"}


def test_a_comparison_shows_power_heat_coverage_links_and_what_was_wrong() -> None:
    def links(at_s: float, counters: dict[str, Any]) -> None:
        counters.update(pcie_width=8, nvlink_replays=int(at_s / 60), nvlink_recoveries=0, nvlink_crc=0)

    bad = Card(stressed=Stressed(wrong=[(900, WORD)]), slow=links)
    one, two = (report.build(simulate([card, Card()], 0.4)) for card in (bad, Card()))
    compared = compare([named("one", one), named("two", two)])
    found, healthy = compared.groups[0].gpus[:2]
    assert (found.wrong, found.wrong_at) == (1, "address 0x7f0000000040, bit 5") and found.pcie_width == 8
    assert found.nvlink_errors is not None and found.nvlink_errors > 10
    assert (healthy.pcie_gen, healthy.pcie_width, healthy.nvlink_errors, healthy.wrong) == (5, 16, None, 0)
    assert healthy.covered_percent == 96 and healthy.memory_temp_c is not None and healthy.most_power_percent
    lines = comparison(compared).splitlines()
    place = next(n for n, line in enumerate(lines) if line.endswith("NVLINK ERRORS  WRONG"))
    assert (
        lines[place + 1].endswith("  1, the first: address 0x7f0000000040, bit 5") and "gen 5 ×8 " in lines[place + 1]
    )
    assert lines[place + 2].endswith("96 % gen 5 ×16              –  none")
    page = render(one)
    assert "generation 5 of 5, lanes 8 of 16" in page and re.search(r"NVLink errors</dt><dd>\d\d</dd>", page)


def test_products_too_short_for_a_speed_are_told_as_such() -> None:
    document = report.build(simulate([Card()], 0.4))
    for product in document.gpus[0].stress_loads.products:
        product.operations_per_s = None
    assert "too short to tell" in summary(document) and "too short to tell" in render(document)
    assert max(map(len, summary(document).splitlines())) <= 80


def test_terminal_page_and_vendors_file_show_what_was_found() -> None:
    document = report.build(simulate([Card(stressed=Stressed(wrong=[(900, WORD)])), Card()], 0.4))
    lines = summary(document).splitlines()
    assert max(map(len, lines)) <= 80
    [row] = [line for line in lines if "75.8 GiB 96 %" in line and line.startswith("0")]
    assert row.split()[-1] == "1"
    page = render(document)
    for text in (
        "Matrix products (TFLOP/s)", "Memory covered in the phase (GiB)", "75.8 GiB (96 % of what was free)",
        "address 0x7f0000000040, bit 5", "model + compute + memory", "To the host", "<h3>By load</h3>",
    ):  # fmt: skip
        assert text in page, text
    readme = bundle.readme(document, document.gpus[0], [])
    assert "address 0x7f0000000040, bit 5" in readme and "--load model,compute,memory" in readme


def test_a_card_of_an_earlier_run_has_no_tables_for_these_loads() -> None:
    page = render(without_stress(report.build(simulate([Card()], 0.4))))
    assert "Matrix products" not in page and "By load" not in page
