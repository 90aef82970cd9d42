"""What a run's records come to: made-up GPUs with faults, a day in seconds."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import msgspec
import pytest
from burnin_support import HOUR_S, START_S, Card, begin, make_plan, simulate, uuid

from obatchd.burnin.journal.records import Bucket, Canary, Ended, Event, Gap, Prepared, Record, Sample
from obatchd.burnin.report import report
from obatchd.documents.burnin.report import BurninGpuPages, CounterChange
from obatchd.gpus.model import ClockReason


def judged(records: list[Record]) -> dict[int, BurninGpuPages]:
    return {gpu.index: gpu for gpu in report.build(records).gpus}


def signals(gpu: BurninGpuPages, consequence: str) -> set[str]:
    return {reason.signal for reason in gpu.reasons if reason.consequence == consequence}


def after(hour: float, **values: Any) -> Any:
    """Change readings from an hour on."""

    def change(at_s: float, fields: dict[str, Any]) -> None:
        if at_s >= hour * HOUR_S:
            fields.update(values)

    return change


def test_a_day_on_eight_gpus_finds_the_three_bad_ones() -> None:
    def double_bit(at_s: float, fields: dict[str, Any]) -> None:
        if at_s >= 6.5 * HOUR_S:
            errors = 2 + int((at_s - 6.5 * HOUR_S) / HOUR_S)
            fields.update(ecc_uncorrected=errors, ecc_uncorrected_aggregate=errors, remap_pending=True)

    def throttles(at_s: float, fields: dict[str, Any]) -> None:
        if at_s % HOUR_S < 300:
            fields.update(clock_reasons=ClockReason.HW_SLOWDOWN | ClockReason.HW_THERMAL, clock_mhz=980)

    line = "NVRM: Xid (PCI:0000:1c:00): 48, pid=2301, name=ollama, DBE (double bit error)"
    cards = [Card() for _ in range(8)]
    cards[3] = Card(slow=double_bit, xids=[(6.5 * HOUR_S, 48, line)])
    cards[5] = Card(reading=throttles, slow=lambda at_s, fields: fields.update(hw_thermal_s=None))
    cards[6] = Card(speed=0.88)
    records = simulate(cards, 24)
    document = report.build(records)
    gpus = {gpu.index: gpu for gpu in document.gpus}
    assert {index for index, gpu in gpus.items() if gpu.verdict == "FAIL"} == {3, 5, 6}
    assert {gpus[index].verdict for index in (0, 1, 2, 4, 7)} == {"PASS"}
    assert (document.verdict, document.exit_code) == ("FAIL", 1)
    assert {"ecc_uncorrected", "xid_48"} <= signals(gpus[3], "fail")
    first = next(reason for reason in gpus[3].reasons if reason.signal == "ecc_uncorrected")
    assert 0 <= datetime.fromisoformat(first.at).timestamp() - START_S - 6.5 * HOUR_S <= 60  # in hour 7
    assert "19 new uncorrectable" in first.text
    assert [event.verbatim for event in gpus[3].events if event.verbatim] == [line]
    assert gpus[3].counters["ecc_uncorrected"] == CounterChange(0, 19, 19)
    assert "bundle 3" in gpus[3].action and "RMA" in gpus[3].action
    assert gpus[5].throttle_s["hw_thermal"] == pytest.approx(24 * 300, rel=0.05)
    assert signals(gpus[6], "fail") == {"slow"}
    assert signals(gpus[5], "fail") == {"hw_slowdown_time"}
    assert gpus[5].reasons[0].text.startswith("slowed down by hardware (heat) for ")
    assert gpus[5].reasons[0].text.endswith(" % of the loaded time")


@pytest.mark.parametrize("seed", range(4))
def test_clean_runs_never_fail(seed: int) -> None:
    """25 runs for each seed, with the noise that readings, speeds and replays of real cards have."""
    for number in range(25):
        for gpu in judged(simulate([Card(), Card()], 0.25, seed=100 * seed + number)).values():
            assert gpu.verdict == "PASS", gpu.reasons


def test_a_gpu_that_takes_more_energy_for_the_same_work_is_noted_and_passes() -> None:
    plan = make_plan(4, 1.0, phases=[])
    gpus = judged(simulate([Card(), Card(hunger=1.13), Card(), Card()], 1.0, plan=plan))
    assert {gpu.verdict for gpu in gpus.values()} == {"PASS"}
    assert [index for index, gpu in gpus.items() if "inefficient" in signals(gpu, "note")] == [1]
    [reason] = [reason for reason in gpus[1].reasons if reason.signal == "inefficient"]
    assert re.match(r"0\.5\d* tokens/J, 1[12]\.\d % fewer than the median of 3 GPUs like it \(0\.6\d\d; ", reason.text)
    for gpu in gpus.values():
        work = gpu.work
        assert work.energy_j is not None and work.tokens_per_j == pytest.approx(work.tokens / work.energy_j, rel=0.02)
        assert work.energy_j == pytest.approx(610 * HOUR_S * (1.13 if gpu.index == 1 else 1.0), rel=0.02)


def test_energy_that_is_not_told_is_absent_and_a_counter_that_begins_anew_spoils_one_bucket() -> None:
    def reloaded(at_s: float, fields: dict[str, Any]) -> None:
        if at_s >= 0.5 * HOUR_S:
            fields["energy_j"] -= 0.5 * HOUR_S * 610

    records = simulate([Card(reading=after(0, energy_j=None)), Card(reading=reloaded), Card()], 1.0)
    gpus, buckets = judged(records), [record.gpus for record in records if isinstance(record, Bucket)]
    untold = [sum(samples[uuid(card)].energy_j is None for samples in buckets) for card in range(3)]
    assert untold[0] == len(buckets) and untold[1] == untold[2] + 1
    assert (gpus[0].work.energy_j, gpus[0].work.tokens_per_j) == (None, None)
    assert gpus[1].work.tokens_per_j == pytest.approx(gpus[2].work.tokens_per_j, rel=0.02)
    assert not any("inefficient" in signals(gpu, "note") for gpu in gpus.values())


def test_batch_work_compares_gpus_that_did_the_same_and_counts_failures() -> None:
    plan = make_plan(3, 1.0, with_jobs=True)
    cards = [Card(speed=0.85), Card(), Card()]
    same = simulate(cards, 1.0, plan=plan)
    assert signals(judged(same)[0], "fail") == {"slow"}
    assert {gpu.verdict for gpu in judged(same).values()} == {"FAIL", "PASS_LOW_STRESS"}
    other = Prepared(START_S + 60, "gpu0", "another", 4096, 8)
    assert not signals(judged([*same[:-1], other, same[-1]])[0], "fail")
    half = simulate([Card(speed=0.85, slots_busy=0.5), Card(), Card()], 1.0, plan=plan)
    assert not signals(judged(half)[0], "fail")
    short = simulate(cards, 0.4, plan=plan)  # a thousand different prompts say too little
    assert not signals(judged(short)[0], "fail")


def test_requests_that_failed_are_in_the_verdict() -> None:
    sample = Sample(seen_s=60, loaded_s=60, slot_s=470, slots=8, tokens=24_000, requests=50, failed=1)
    gpu = judged(run_of(sample=sample))[0]
    assert gpu.verdict == "PASS_LOW_STRESS"
    [reason] = [reason for reason in gpu.reasons if reason.signal == "failed_requests"]
    assert reason.text == "60 of 3060 requests failed" and "log of its Ollama server" in gpu.action


def test_acceptance_needs_the_stress() -> None:
    plan = msgspec.structs.replace(make_plan(1, 0.4), strict=True)
    gpu = judged(simulate([Card(reading=after(0, utilisation_percent=85))], 0.4, plan=plan))[0]
    assert gpu.verdict == "INCONCLUSIVE"
    assert "acceptance" in gpu.reasons[0].text


def run_of(*extra: Record, sample: Sample | None = None, buckets: int = 60) -> list[Record]:
    """An hour on one GPU with buckets of a minute, all alike."""
    plan = make_plan(1, 1.0, phases=[])  # of a version that knew no load but the model
    alike = sample or Sample(
        seen_s=60, loaded_s=60, slot_s=470, slots=8, tokens=24_000, prompt_tokens=90_000, requests=50,
        utilisation_percent=97, power_w=600, power_limit_w=700, memory_used_bytes=70 * 2**30,
        memory_total_bytes=80 * 2**30,
    )  # fmt: skip
    series = [Bucket(START_S + 60 * (n + 1), 60.0, {uuid(0): alike}) for n in range(buckets)]
    return [*begin(plan, [Card()]), *series, *extra, Ended(START_S + 3600, "completed")]


def test_nobody_watched_is_no_pass() -> None:
    blind = Sample(loaded_s=60, slot_s=470, slots=8, tokens=24_000, requests=50)
    gpu = judged(run_of(sample=blind))[0]
    assert gpu.verdict == "INCONCLUSIVE"
    assert "monitoring_lost" in signals(gpu, "inconclusive")


def test_no_record_of_any_work_is_no_pass() -> None:
    assert report.build(run_of(buckets=0)).exit_code == 2


def test_a_stopped_run_is_inconclusive() -> None:
    records = run_of(buckets=20)
    records[-1] = Ended(START_S + 1200, "stopped", "stopped by an administrator")
    document = report.build(records)
    assert (document.verdict, document.state) == ("INCONCLUSIVE", "stopped")


def test_a_run_in_progress_is_judged_by_what_it_has_done() -> None:
    document = report.build(run_of(buckets=20)[:-1])
    assert (document.verdict, document.state) == ("PASS", "loading")


def test_a_certain_fault_outweighs_missing_evidence() -> None:
    lost = Event(START_S + 100, uuid(0), "lost", "the driver does not find the GPU any more", "fail", "Reboot.")
    gpu = judged(run_of(lost, buckets=10))[0]
    assert gpu.verdict == "FAIL"
    assert signals(gpu, "inconclusive") == {"short_load"}


def test_a_gap_is_shown_and_not_counted_as_load() -> None:
    document = report.build(run_of(Gap(START_S + 3600, START_S + 7200, "obatchd was not running")))
    assert document.elapsed_s == 3600
    assert [gap.reason for gap in document.gaps] == ["obatchd was not running"]


@pytest.mark.parametrize(
    ("steps", "verdict"),
    [
        (["calibrated", "match", "match"], "PASS"),
        (["off"], "PASS"),
        (["calibrated", "match", "mismatch", "cleared"], "PASS"),
        (["calibrated", "mismatch", "suspect"], "INCONCLUSIVE"),
        (["calibrated", "mismatch", "confirmed"], "FAIL"),
    ],
)
def test_output_checks_in_the_verdict(steps: list[Any], verdict: str) -> None:
    canaries = [Canary(START_S + n, uuid(0), step, "3 of 3 repetitions differ too") for n, step in enumerate(steps)]
    gpu = judged(run_of(*canaries))[0]
    assert gpu.verdict == verdict
    assert gpu.canary.state == ("off" if steps == ["off"] else "on")
    assert ("silent_corruption" in signals(gpu, "fail")) == (verdict == "FAIL")


def test_a_server_that_could_not_be_prepared() -> None:
    records = run_of(buckets=0)
    records[1] = Prepared(START_S, "gpu0", "llama3.3", 0, 8, problem="llama3.3 does not fit")
    gpu = judged(records)[0]
    assert gpu.verdict == "INCONCLUSIVE"
    assert "does not fit" in gpu.reasons[0].text


def test_a_gpu_alone_is_compared_with_its_own_first_hour() -> None:
    def tired(hours: float) -> list[Record]:
        records = simulate([Card()], hours, plan=make_plan(1, hours, load=["model"]))
        return [
            msgspec.structs.replace(
                record,
                gpus={
                    gpu: msgspec.structs.replace(
                        s, tokens=int(s.tokens * (0.85 if record.at_s > START_S + 3700 else 1))
                    )
                    for gpu, s in record.gpus.items()
                },
            )
            if isinstance(record, Bucket)
            else record
            for record in records
        ]

    gpu = judged(tired(2.1))[0]
    assert gpu.verdict == "FAIL"
    assert "its own first hour" in gpu.reasons[0].text
