"""Plan, journal, output check, prompts, page and comparison of a burn-in, each by itself."""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from burnin_support import START_S, Card, begin, make_plan, simulate, uuid
from colour_support import EYES, contrast, least_distance

from obatchd.burnin.journal import journal
from obatchd.burnin.journal.records import Bucket, Ended, Event, Gap, Record, Sample
from obatchd.burnin.report import reading, report
from obatchd.burnin.report.compare import compare
from obatchd.burnin.report.html import render
from obatchd.burnin.report.plots import line_style
from obatchd.burnin.report.terminal import comparison, summary
from obatchd.burnin.run import plan
from obatchd.burnin.run.plan import Asked
from obatchd.burnin.run.recording import Watch
from obatchd.burnin.run.workload import Shape, context_for
from obatchd.burnin.verdict import canary
from obatchd.burnin.verdict.canary import Answer, Reference
from obatchd.documents.burnin.report import BurninReport
from obatchd.errors import ConfigError, NotFoundError, StoreError
from obatchd.gpus.model import Identity, Reading, SlowReading
from obatchd.settings.settings import Settings
from obatchd.settings.tables.gpu_health import GpuHealthSettings

SETTINGS = Settings(model="llama3.3")


# Plan.


def test_profiles_and_durations() -> None:
    made = plan.make("r", Asked(profile="acceptance"), ["GPU-1"], SETTINGS)
    assert (made.duration_s, made.strict, made.canary_s) == (86400, True, 600)
    assert plan.duration_s("1d12h") == 129_600
    short = plan.make("r", Asked(duration="3m", profile="quick"), ["GPU-1"], SETTINGS)
    assert (short.duration_s, short.canary_s, short.bucket_s) == (180, 30, 1.0)
    assert plan.make("r", Asked(with_jobs=True), ["GPU-1"], SETTINGS).canary_s == 0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Asked(duration="soon"), "no length of time"),
        (Asked(duration="1s"), "out of range"),
        (Asked(profile="slow"), "no profile"),
        (Asked(exclusive=True, with_jobs=True), "choose one"),
    ],
)
def test_what_cannot_be_planned_says_why(asked: Asked, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan.make("r", asked, ["GPU-1"], SETTINGS)


def test_a_load_needs_a_model_and_batch_work_brings_its_own() -> None:
    none = Settings()
    with pytest.raises(ConfigError, match="no model"):
        plan.make("r", Asked(), ["GPU-1"], none)
    assert plan.make("r", Asked(with_jobs=True), ["GPU-1"], none).model == ""


# Journal.


def test_a_journal_survives_a_torn_line(tmp_path: Path) -> None:
    records = begin(make_plan(1, 1.0), [Card()])
    shelf = journal.Shelf(tmp_path)
    file = journal.Journal(shelf.path("20261124-180000"))
    file.append(records)
    file.close()
    with open(shelf.path("20261124-180000"), "ab") as torn:
        torn.write(b'{"type":"bucket","at_s":17')
    file = journal.Journal(shelf.path("20261124-180000"))
    file.append([Gap(1.0, 2.0, "obatchd was not running")])
    file.close()
    assert shelf.read("20261124") == [*records, Gap(1.0, 2.0, "obatchd was not running")]
    assert shelf.read("latest") == shelf.read("20261124-180000")
    assert shelf.ends("20261124-180000") == (records[0], None)


def test_the_ends_of_a_long_journal(tmp_path: Path) -> None:
    records = begin(make_plan(1, 1.0), [Card()])
    shelf = journal.Shelf(tmp_path)
    file = journal.Journal(shelf.path("r"))
    file.append([*records, Gap(1.0, 2.0, "x" * 100_000)])
    assert shelf.ends("r") == (records[0], None)
    file.append([Ended(3.0, "completed")])
    file.close()
    assert shelf.ends("r") == (records[0], Ended(3.0, "completed"))
    with open(shelf.path("r"), "ab") as torn:
        torn.write(b'{"type":"bu')
    assert shelf.ends("r") == (records[0], None)
    shelf.path("x").write_text("{}\n")
    with pytest.raises(StoreError, match="not the journal"):
        shelf.ends("x")


def test_a_journal_that_is_closed_while_it_is_written_touches_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that ends leaves a run in the middle of a record; its number may be another file's by then."""
    file = journal.Journal(tmp_path / "r.jsonl")
    flushing, go, flush = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        flushing.set()
        go.wait(20)
        flush(descriptor)
        raise OSError(28, "No space left on device")

    def refused(records: list[Record]) -> bool:
        try:
            file.append(records)
        except OSError:
            return True
        return False

    monkeypatch.setattr("os.fsync", slow)
    with ThreadPoolExecutor(2) as threads:
        appended = threads.submit(refused, [Gap(1.0, 2.0, "written when the disk is slow")])
        flushing.wait(20)
        closed = threads.submit(file.close)
        wait([closed], 0.2)
        with open(tmp_path / "other", "w+") as other:
            other.write("the file of somebody else")
            other.flush()
            go.set()
            assert appended.result(20)
            closed.result(20)
            assert (tmp_path / "other").read_text() == "the file of somebody else"
            assert refused([Gap(2.0, 3.0, "too late")])
            file.close()
            other.flush()
            assert (tmp_path / "other").read_text() == "the file of somebody else"


def test_a_disk_that_refuses_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = journal.Journal(tmp_path / "r.jsonl")
    records = begin(make_plan(1, 1.0), [Card()])
    file.append(records)

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("os.fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            file.append([Ended(2.0, "completed")])
    file.append([Ended(3.0, "completed")])
    file.close()
    assert journal.read(tmp_path / "r.jsonl") == [*records, Ended(3.0, "completed")]


def test_runs_that_are_not_there(tmp_path: Path) -> None:
    shelf = journal.Shelf(tmp_path)
    for run in ("latest", "2026"):
        with pytest.raises(NotFoundError):
            shelf.read(run)
    (tmp_path / "x.jsonl").write_text("{}\n")
    with pytest.raises(StoreError, match="not the journal"):
        shelf.read("x")


def test_old_journals_are_deleted_but_never_the_one_in_use(tmp_path: Path) -> None:
    shelf = journal.Shelf(tmp_path)
    names = [f"2026112{day}-180000" for day in range(6)]
    for day, name in enumerate(names):
        shelf.path(name).write_text("{}\n")
        os.utime(shelf.path(name), (1000.0 + day, 1000.0 + day))
    assert shelf.prune(5, 0.0, spare="") == names[:1]
    assert shelf.prune(5, 1003.0, spare=names[2]) == names[1:2]  # 1 and 2 are too old
    assert shelf.prune(1, 0.0, spare=names[2]) == names[3:5]
    assert shelf.runs() == [names[2], names[5]]


# Health over a restart of the daemon.


def test_errors_while_nobody_watched_are_found_afterwards() -> None:
    identity, settings = Identity(uuid(0), "GPU"), GpuHealthSettings()

    def read(watch: Watch, at_s: float, errors: int) -> list[Event]:
        slow = SlowReading(uuid(0), at_s, ecc_uncorrected=errors, ecc_uncorrected_aggregate=errors)
        watch.read(uuid(0), Reading(uuid(0), at_s), slow)
        return [event for event in watch.judge(at_s) if event.consequence == "fail"]

    before = Watch({uuid(0): identity}, settings)
    assert read(before, START_S, 0) == []
    kept = msgspec.json.decode(msgspec.json.encode(before.condensed(START_S)), type=type(before.condensed(START_S)))
    after = Watch({uuid(0): identity}, settings, journal.tracks([kept]))
    assert [event.signal for event in read(after, START_S + 600, 2)] == ["ecc_uncorrected"]


# Output check.


def answers(*digests: str) -> list[Answer]:
    return [Answer(digest, (-0.5, -0.25)) for digest in digests]


def test_a_consistent_gpu_is_calibrated_and_another_is_not() -> None:
    found = canary.calibrate(answers(*["a"] * 19, "b"))
    assert found.reference is not None and found.reference.answer.digest == "a"
    assert found.strays == 1
    off = canary.calibrate(answers(*["a"] * 12, *["b"] * 8))
    assert off.reference is None
    assert "does not get the same answer" in off.text
    assert canary.calibrate(answers("a", "a")).reference is None


def test_equal_text_with_other_probabilities_differs() -> None:
    calibration = [Answer("a", (-0.5, -0.25 + step * 1e-5)) for step in range(10)]
    reference = canary.calibrate(calibration).reference
    assert reference is not None
    assert canary.agrees(reference, Answer("a", (-0.5, -0.25009)))
    assert not canary.agrees(reference, Answer("a", (-0.5, -0.26)))
    assert not canary.agrees(reference, Answer("b", (-0.5, -0.25)))
    assert canary.agrees(reference, Answer("a"))  # a server that tells no probabilities


@pytest.mark.parametrize(
    ("repeats", "siblings", "step"),
    [
        ([True, True, True], [True], "cleared"),
        ([False, True, True], [True], "cleared"),
        ([False, False, True], [True, True], "confirmed"),
        ([False, False, False], [], "suspect"),
        ([False, False, False], [True, False], "suspect"),
    ],
)
def test_a_mismatch_is_settled(repeats: list[bool], siblings: list[bool], step: str) -> None:
    assert canary.settle(repeats, siblings).step == step


def test_only_one_against_at_least_two_that_agree_is_an_outsider() -> None:
    def references(*digests: str) -> dict[str, Reference]:
        return {f"gpu{n}": Reference(Answer(digest), 0.1) for n, digest in enumerate(digests)}

    assert canary.outsider(references("a", "a", "b", "a")) == "gpu2"
    assert canary.outsider(references("a", "b")) is None
    assert canary.outsider(references("a", "a", "b", "b")) is None
    assert canary.outsider(references("a", "b", "c")) is None


# Prompts.


def test_every_server_gets_the_same_mixture_of_reading_and_writing() -> None:
    shape = Shape(8192, 86400)
    for _ in range(50):
        shape.learn(shape.work(0), 3000, 1.0, 500, 10.0)
    works = [shape.work(number) for number in range(300)]
    assert works == [shape.work(number) for number in range(300)]
    assert len({work.prompt.split()[1] for work in works}) == 300
    assert {work.kind for work in works} == {"read", "write", "both"}
    assert max(work.answer_tokens for work in works) > 500
    assert all(16 <= work.answer_tokens <= 2048 for work in works)


def test_prompts_fit_the_context_whatever_a_word_costs() -> None:
    shape = Shape(4096, 86400)
    for tokens_per_word in (1.2, 3.5):
        for number in range(60):
            work = shape.work(number)
            shape.learn(work, int(work.words * tokens_per_word), 0.1, 100, 1.0)
        longest = max((shape.work(number) for number in range(200)), key=lambda work: work.words)
        tokens = longest.words * tokens_per_word + longest.answer_tokens
        assert 0.7 * 4096 < tokens < 4096


def test_a_server_that_does_not_count_known_tokens_gets_no_endless_prompts() -> None:
    shape = Shape(8192, 86400)
    for number in range(200):
        shape.learn(shape.work(number), 5, 0.001, 100, 1.0)
    assert max(shape.work(number).words for number in range(200)) < 8192


def test_requests_of_a_slow_model_stay_short() -> None:
    shape = Shape(32768, 86400)
    for number in range(60):
        shape.learn(shape.work(number), 400, 10.0, 50, 10.0)  # reads 40 and writes 5 tokens a second
    assert max(shape.work(number).answer_tokens for number in range(100)) <= 160


def test_a_server_that_is_fast_alone_gets_no_endless_requests_in_company() -> None:
    """The llama-server of 0.33 wrote 512 tokens in 0.13 s alone and in 6 s beside three others."""
    shape = Shape(8192, 180)
    for number in range(60):
        shape.learn(shape.work(number), 400, 0.1, 512, 6.0 if number % 3 else 0.13)
    assert max(shape.work(number).answer_tokens for number in range(100)) * 6.0 / 512 < 2 * 3.0


def test_the_context_that_fills_memory() -> None:
    gib = 2**30
    assert context_for(68 * gib, (8192, 44 * gib), (16384, 46 * gib), 131072) == 106496
    assert context_for(68 * gib, (8192, 44 * gib), (16384, 46 * gib), 65536) == 65536
    assert context_for(68 * gib, (8192, 44 * gib), (16384, 44 * gib), 65536) == 16384
    assert context_for(68 * gib, (8192, 67 * gib), (16384, 72 * gib), 131072) % 256 == 0


# Page, summary, comparison.


class Links(HTMLParser):
    """What a browser would fetch, and the ids a page has and refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.used: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            if name in ("src", "href") and value:
                (self.used.add(value[1:]) if value.startswith("#") else self.fetched.append(value))


def finished() -> BurninReport:
    records = simulate([Card(), Card(speed=0.8), Card()], 0.3)
    records.insert(-1, Gap(START_S + 1080, START_S + 2000, "obatchd was not running"))
    records.insert(-1, Event(START_S + 500, uuid(1), "xid_31", "XID 31: <b>fault</b>", "warn"))
    return report.build(records)


def test_the_page_stands_alone_and_has_a_page_for_each_gpu() -> None:
    document = finished()
    page = render(document)
    links = Links()
    links.feed(page)
    assert links.fetched == []
    assert not re.search(r"url\(|@import|<script|<link", page)
    assert links.used <= links.ids
    assert page.count('<section class="gpu"') == 3
    assert "break-before: page" in page
    assert "&lt;b&gt;fault&lt;/b&gt;" in page
    assert page.count('class="gap"') >= 6
    assert "Gap of 15 min" in page
    assert "Serial number" in page and "1651223000001" in page


@pytest.mark.parametrize("count", [12, 56])  # 56: eight cards in seven slices each
def test_every_gpu_has_a_line_of_its_own_in_plots_and_legend(count: int) -> None:
    page = render(report.build(simulate([Card() for _ in range(count)], 0.1)))
    keys = re.findall(r'<path class="line" d="M0 4H34" style="([^"]+)"/></svg> GPU (\d+)<', page)
    assert [int(index) for _, index in keys] == list(range(count))
    assert len({style for style, _ in keys}) == count
    for number, (style, _) in enumerate(keys):
        assert f'<use href="#power_w-{number}" class="line" style="{style}"/>' in page
    assert [style.partition(";")[0] for style, _ in keys[:4]] == [style.partition(";")[0] for style, _ in keys[8:12]]


@pytest.mark.parametrize("eyes", EYES)
def test_eight_colours_are_told_apart_by_everybody(eyes: str) -> None:
    colours = [style[7:14] for style in map(line_style, range(8))]
    assert least_distance(colours, eyes) > 30  # before: 28, and 18 to 27 without some cones
    assert min(contrast(colour, "#fff") for colour in colours) >= 3  # before: 1.9


def test_the_page_of_a_run_that_has_not_begun() -> None:
    page = render(report.build(begin(make_plan(2, 1.0), [Card(), Card()])[:1]))
    assert "INCONCLUSIVE" in page
    assert "unknown: this GPU or its driver does not tell it" in page


def test_the_summary_fits_a_terminal() -> None:
    text = summary(finished())
    assert max(map(len, text.splitlines())) <= 80
    assert " %" in text and not re.search(r"[0-9][%°]", text)
    assert "GPU 1" in text and "slow" not in text.splitlines()[0]
    assert "FAIL" in text and "gap from" in text


def test_a_report_is_read_back_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    document = finished()
    path.write_bytes(msgspec.json.encode(document))
    read = reading.read_file(path)
    assert msgspec.json.encode(read) == path.read_bytes()
    assert reading.typed(read, BurninReport) == document
    with pytest.raises(ConfigError, match=r"of this version.*gpus"):
        reading.typed({**read, "gpus": [{"uuid": "GPU-1"}]}, BurninReport)
    path.write_text('{"kind": "other"}')
    with pytest.raises(ConfigError, match="not a burn-in report"):
        reading.read_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        reading.read_file(tmp_path / "none.json")


def host(name: str, *speeds: float) -> BurninReport:
    document = report.build(simulate([Card(speed=speed) for speed in speeds], 0.3))
    document.host = msgspec.structs.replace(document.host, hostname=name)
    return document


def test_a_hot_chassis_whose_siblings_all_agree_shows_beside_another_host() -> None:
    hot = host("hot", 0.85, 0.85, 0.85, 0.85)
    assert hot.verdict == "PASS"
    document = compare([host("good", 1, 1, 1, 1), hot])
    assert (document.verdict, document.exit_code) == ("FAIL", 1)
    [group] = document.groups
    assert len(group.hosts) == 1 and group.hosts[0].startswith("hot ")
    assert "hot" in comparison(document)


def failed(document: BurninReport, index: int, verdict: str) -> BurninReport:
    document.gpus[index].verdict = verdict
    return document


@pytest.mark.parametrize(
    ("verdict", "exit_code"), [("FAIL", 1), ("INCONCLUSIVE", 2), ("PASS_LOW_STRESS", 0), ("PASS", 0)]
)
def test_the_reports_own_verdicts_count_in_a_comparison(verdict: str, exit_code: int) -> None:
    document = compare([host("one", 1, 1), failed(host("two", 1, 1), 1, verdict)])
    assert (document.verdict, document.exit_code) == (verdict, exit_code)
    run, page = document.groups[0].gpus[0].run, comparison(document)
    assert (f"The reports themselves say: two {run} GPU 1: {verdict}." in document.meaning) == (verdict != "PASS")
    rows = [line for line in page.splitlines() if line.startswith(("one ", "two "))][:4]
    assert [line.split()[3] for line in rows] == ["PASS", "PASS", "PASS", verdict]


def test_a_failed_gpu_without_a_speed_fails_the_comparison_too() -> None:
    bad = failed(host("two", 1, 1, 1), 2, "FAIL")
    bad.gpus[2].work.tokens_per_s, bad.gpus[2].stress_loads.products = None, []
    document = compare([host("one", 1, 1), bad])
    assert (document.verdict, document.exit_code) == ("FAIL", 1)
    assert "GPU 2: FAIL" in document.meaning and any("no speed" in text for text in document.left_out)


def test_a_verdict_that_this_version_does_not_know_is_no_pass() -> None:
    with pytest.raises(ConfigError, match="verdict SPLENDID"):
        compare([host("one", 1, 1), failed(host("two", 1, 1), 0, "SPLENDID")])


def test_a_comparison_has_tokens_per_joule_where_reports_tell_them() -> None:
    first, second = host("one", 1, 1), report.build(simulate([Card(hunger=1.25)], 0.3))
    compared = compare([first, second])
    [group] = compared.groups
    shares = [row.tokens_per_j_of_median_percent for row in group.gpus]
    assert shares[2] == pytest.approx(80, abs=2) and shares[0] == pytest.approx(112, abs=6)
    assert {row.judgement for row in group.gpus} == {"as the others"}  # it is told, and judged by nobody
    assert "TOKENS/J" in comparison(compared) and "0.5" in comparison(compared)
    for group in compared.groups:
        for row in group.gpus:
            row.hostname = "vm"
    [heads, *rows] = comparison(compared).splitlines()[3:7]
    assert {row[heads.index("RUN") :].split()[0] for row in rows} == {row.run for row in group.gpus}


def test_a_report_of_a_version_that_read_no_energy_is_read_and_compared() -> None:
    old = msgspec.to_builtins(finished())
    for gpu in old["gpus"]:
        del gpu["work"]["energy_j"], gpu["work"]["tokens_per_j"]
    read = reading.typed(old, BurninReport)
    assert [gpu.work.tokens_per_j for gpu in read.gpus] == [None] * 3
    assert "tokens/J" in render(read) and max(map(len, summary(read).splitlines())) <= 80
    compared = compare([read, host("new", 1)])
    told = [row.tokens_per_j_of_median_percent for group in compared.groups for row in group.gpus]
    assert told == [None] * 4 and " – " in comparison(compared)


def test_the_page_says_what_work_cost_beside_the_others() -> None:
    page = render(report.build(simulate([Card(), Card(hunger=1.25), Card()], 1.0)))
    assert re.search(r"Energy under load</dt><dd>\d+ Wh</dd>|Energy under load</dt><dd>0\.\d+ kWh</dd>", page)
    assert re.search(r"Tokens per joule</dt><dd>0\.\d+ \(\d+\.\d % of the median of 2 GPUs like it\)</dd>", page)


def test_equal_hosts_pass_and_what_cannot_be_compared_is_named() -> None:
    other = host("other", 1.0)
    other.gpus[0].name = "NVIDIA A100"
    document = compare([host("one", 1, 1), host("two", 1, 0.98), other])
    assert document.verdict == "PASS"
    assert any("other" in text for text in document.left_out)
    with pytest.raises(ConfigError, match="no GPU of its kind with the same load"):
        compare([other])
    with pytest.raises(ConfigError, match=r"one .*: given twice"):
        compare([host("one", 1), host("one", 1)])


def test_a_gpu_beside_its_own_earlier_run_is_one_gpu() -> None:
    later = host("one", 1)
    later.run = "another"
    assert compare([host("one", 1), later]).meaning == "1 GPU is as fast in each of its runs."
    later.gpus[0].work.tokens_per_s = 1.0
    assert compare([host("one", 1), later]).meaning == "1 GPU is slower in some of its runs than in others."


def test_tokens_are_attributed_in_buckets() -> None:
    records = [r for r in simulate([Card()], 0.3) if isinstance(r, Bucket)]
    whole = sum((r.gpus[uuid(0)].tokens for r in records), 0)
    document = report.build([*begin(make_plan(1, 0.3), [Card()]), *records])
    assert document.gpus[0].work.tokens == whole
    assert isinstance(records[0].gpus[uuid(0)], Sample)
