"""The report of a run over several hosts, from the records of made-up hosts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from burnin_support import START_S, Card, Stressed, make_plan, simulate

from obatchd.burnin.journal.hosts import HostPart, beside, of_host
from obatchd.burnin.journal.records import Begun, Bucket, Canary, Ended, Event, Gap, Prepared, Record, Sample
from obatchd.burnin.report import bundle, over_hosts, report
from obatchd.burnin.report.compare import compare
from obatchd.burnin.report.html import render
from obatchd.burnin.report.over_hosts import OverHosts
from obatchd.burnin.report.terminal import summary
from obatchd.documents.burnin.report import BurninGpuPages, BurninReport
from obatchd.errors import NotFoundError

HOURS = 0.5


def part(host: str, cards: Sequence[Card], *, seed: int, ahead_s: float = 0.0, **changes: Any) -> HostPart:
    """A host that told all of a run on these cards."""
    records = [altered(record, **changes) for record in simulate(cards, HOURS, seed=seed)]
    return HostPart(host, "completed", "", of_host(records, host, ahead_s))


def altered(record: Record, *, driver: str = "", ollama: str = "", ahead_s: float = 0.0, answers: str = "") -> Record:
    if isinstance(record, Begun) and driver:
        units = [
            msgspec.structs.replace(u, identity=msgspec.structs.replace(u.identity, driver=driver))
            for u in record.units
        ]
        record = msgspec.structs.replace(record, units=units)
    if isinstance(record, Prepared) and ollama:
        record = msgspec.structs.replace(record, ollama=ollama)
    if isinstance(record, Canary) and answers:
        record = msgspec.structs.replace(record, digest=answers)
    if ahead_s and not isinstance(record, Gap):
        record = msgspec.structs.replace(record, at_s=record.at_s + ahead_s)
    return record


def reported(*parts: HostPart) -> BurninReport:
    plan = make_plan(0, HOURS)
    return over_hosts.build(OverHosts(plan, START_S - 60, "0.1.0", "completed", START_S + 1800, "completed"), parts)


def verdicts(document: BurninReport) -> dict[str, str]:
    return {gpu.server: gpu.verdict for gpu in document.gpus}


def reasons(document: BurninReport, server: str) -> list[str]:
    gpu = next(gpu for gpu in document.gpus if gpu.server == server)
    return [f"{reason.consequence} {reason.signal}" for reason in gpu.reasons]


def test_a_slow_gpu_that_is_alone_in_its_host_is_found_beside_those_of_other_hosts() -> None:
    slow = [Card(speed=0.85)]
    alone = reported(part("node03", slow, seed=3))
    assert alone.verdict == "PASS"  # beside itself it looks fine
    document = reported(
        part("node01", [Card()], seed=1), part("node02", [Card()], seed=2), part("node03", slow, seed=3)
    )
    assert verdicts(document) == {"node01.gpu0": "PASS", "node02.gpu0": "PASS", "node03.gpu0": "FAIL"}
    assert reasons(document, "node03.gpu0")[:1] == ["fail slow"]
    assert (document.verdict, document.exit_code) == ("FAIL", 1)
    assert [gpu.host for gpu in document.gpus] == ["node01", "node02", "node03"]
    text = summary(document)
    assert "on 3 hosts: FAIL" in text and "node03/0" in text
    page = render(document)
    assert 'id="gpu-2"' in page and "GPU node03/0" in page


def test_products_that_repeat_themselves_are_outvoted_over_hosts_of_one_driver() -> None:
    wrong = Card(stressed=Stressed(first="bad0"))
    parts = [part(f"node0{n}", [Card()], seed=n) for n in (1, 2)]
    found = reported(*parts, part("node03", [wrong], seed=3))
    assert verdicts(found)["node03.gpu0"] == "FAIL" and "fail wrong_result" in reasons(found, "node03.gpu0")
    other = reported(*parts, part("node03", [wrong], seed=3, driver="580.1"))
    assert verdicts(other)["node03.gpu0"] == "PASS"  # another driver may round otherwise


def test_another_answer_fails_a_gpu_only_where_one_of_its_host_gives_that_of_the_others() -> None:
    parts = [part(f"node0{n}", [Card()], seed=n) for n in (1, 2)]
    alone = reported(*parts, part("node03", [Card()], seed=3, answers="bad0"))
    assert reasons(alone, "node03.gpu0") == ["inconclusive answers_differ"]
    assert alone.exit_code == 2
    pair = part("node03", [Card(), Card()], seed=3)
    first = next(record for record in pair.records if isinstance(record, Begun)).units[1].uuid
    mixed = [
        msgspec.structs.replace(r, digest="bad0") if isinstance(r, Canary) and r.gpu == first else r
        for r in pair.records
    ]
    beside_a_good_one = reported(*parts, pair._replace(records=mixed))
    assert verdicts(beside_a_good_one)["node03.gpu0"] == "PASS"
    assert reasons(beside_a_good_one, "node03.gpu1") == ["fail silent_corruption"]


def test_speeds_of_another_ollama_are_not_compared() -> None:
    slow = part("node03", [Card(speed=0.8)], seed=3, ollama="0.33.1")
    document = reported(*(part(f"node0{n}", [Card()], seed=n) for n in (1, 2)), slow)
    assert verdicts(document)["node03.gpu0"] == "PASS"


def test_a_host_that_is_slow_as_a_whole_is_named() -> None:
    hot = part("node03", [Card(speed=0.8), Card(speed=0.8)], seed=3)
    document = reported(*(part(f"node0{n}", [Card(), Card()], seed=n) for n in (1, 2)), hot)
    assert [name for name, verdict in verdicts(document).items() if verdict == "FAIL"] == ["node03.gpu0", "node03.gpu1"]
    assert document.outliers and any("node03" in text and "as a whole" in text for text in document.outliers)
    assert "as a whole" in summary(document)


def lost(whole: HostPart, share: float) -> HostPart:
    """A host that told only the beginning of its run."""
    cut_s = START_S + share * HOURS * 3600
    told = [r for r in whole.records if (r.until_s if isinstance(r, Gap) else r.at_s) <= cut_s]
    event = Event(cut_s, "", "host_lost", "node02 is away: the cable was pulled", "inconclusive", "Bring it back.")
    return HostPart("node02", "lost", event.text, [*told, event, Ended(cut_s, "failed", event.text)])


def test_a_host_that_was_lost_or_never_began_is_never_a_pass() -> None:
    good, away = part("node01", [Card()], seed=1), lost(part("node02", [Card()], seed=2), 0.5)
    begun = next(record for record in away.records if isinstance(record, Begun))
    event = Event(START_S, "", "not_begun", "node03 has no model: pull it", "inconclusive", "obatchctl models pull")
    never = HostPart("node03", "not_begun", event.text, [of_host([begun], "node03")[0], event])
    unknown = HostPart("node04", "not_begun", "node04 is away")
    document = reported(good, away, never, unknown)
    gpus = document.gpus
    assert [gpu.verdict for gpu in gpus] == ["PASS", "INCONCLUSIVE", "INCONCLUSIVE"]
    assert gpus[1].reasons[0].signal == "host_lost" and gpus[1].action == "Bring it back."
    assert [reason.signal for reason in gpus[2].reasons] == ["not_begun"]
    assert document.exit_code == 2 and "node02, node03, node04" in document.meaning
    assert [host.verdict for host in document.hosts or ()] == ["PASS", *["INCONCLUSIVE"] * 3]
    assert "node04: node04 is away" in summary(document)
    only = reported(good, unknown)
    assert only.exit_code == 2 and "not every host can be judged" in only.meaning


def test_a_lost_host_that_had_shown_a_fault_fails_all_the_same() -> None:
    def errors(at_s: float, fields: dict[str, Any]) -> None:
        if at_s >= 300:
            fields.update(ecc_uncorrected=3, ecc_uncorrected_aggregate=3)

    bad = lost(part("node02", [Card(slow=errors)], seed=2), 0.6)
    document = reported(part("node01", [Card()], seed=1), bad)
    assert verdicts(document)["node02.gpu0"] == "FAIL" and document.exit_code == 1


def test_times_are_those_of_the_head_whatever_a_host_thinks_it_is() -> None:
    day_s = 86_400.0
    late = part("node02", [Card()], seed=2)
    off = [altered(record, ahead_s=day_s) for record in simulate([Card()], HOURS, seed=2)]
    corrected = HostPart("node02", "completed", "", of_host(off, "node02", day_s))
    one, two = (reported(part("node01", [Card()], seed=1), each) for each in (late, corrected))
    assert two.at == one.at and two.loading_at == one.loading_at
    assert two.gpus[1].series == one.gpus[1].series


def test_series_of_hosts_lie_beside_each_other() -> None:
    tens = [Bucket(10.0 * n, 10.0, {"a": Sample(tokens=n)}) for n in range(1, 7)]
    shifted = [Bucket(10.0 * n + 4, 10.0, {"b": Sample(tokens=n)}) for n in range(1, 4)]
    times, (first, second) = beside([tens, shifted])
    assert times == [10, 20, 30, 40, 50, 60] and first == tens
    assert [bucket.gpus["b"].tokens for bucket in second[:4]] == [1, 2, 3, 3] and not second[5].gpus
    times, (short, longer) = beside([tens[:2], tens[:1] + tens[3:]])
    assert times == [10, 40, 50, 60] and [bool(bucket.gpus) for bucket in short] == [True, False, False, False]
    assert all(bucket.gpus for bucket in longer)


def test_the_series_of_a_run_names_the_host_of_each_gpu() -> None:
    parts = [part(f"node0{n}", [Card()], seed=n) for n in (1, 2)]
    run = OverHosts(make_plan(0, HOURS), START_S, "0.1.0", "loading")
    document = over_hosts.series(run, parts, 20)
    assert document.active and [gpu.host for gpu in document.gpus] == ["node01", "node02"]
    assert all(len(gpu.power_w) == len(document.at_s) <= 20 for gpu in document.gpus)


def test_reports_of_one_machine_know_no_hosts() -> None:
    document = msgspec.to_builtins(report.build(simulate([Card()], 0.25)))
    assert "host" not in document["gpus"][0] and not {"hosts", "outliers"} & document.keys()


def test_comparing_takes_a_report_of_several_hosts_apart() -> None:
    one = reported(part("node01", [Card()], seed=1), part("node02", [Card(speed=0.8)], seed=2))
    compared = compare([one])
    (group,) = compared.groups
    assert [row.hostname for row in group.gpus] == ["node01", "node02"] and compared.exit_code == 1


def test_the_vendors_file_names_the_gpu_by_its_host_and_runs_no_tools_elsewhere(tmp_path: Path) -> None:
    document = reported(part("node01", [Card()], seed=1), part("node02", [Card(speed=0.8)], seed=2))
    with pytest.raises(NotFoundError, match="name one of node01/0, node02/0"):
        bundle.find_gpu(document, "0")
    gpu: BurninGpuPages = bundle.find_gpu(document, "node02/0")
    assert gpu is bundle.find_gpu(document, "node02.gpu0") and gpu.host == "node02"
    tools = bundle.write(document, gpu, tmp_path / "a.tar.gz", diagnose=True, free=_never)
    assert len(tools) == 1 and "the GPU is in node02" in tools[0].outcome
    assert "--gpus node02.gpu0" in bundle.readme(document, gpu, tools)


def _never() -> Any:
    raise AssertionError("no GPU of this machine is to be freed")
