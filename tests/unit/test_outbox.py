"""What a job's outbox holds, and that nobody ever reads half of it."""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from pathlib import Path

import msgspec
import pytest
from spool_support import Disk

from obatchd.documents.jobs import Counts, EarlierStatus, EarlierSummary, ServerWork
from obatchd.jobs.model import Outcome
from obatchd.spool.batch_lines import batch_line
from obatchd.spool.outbox import JobOutbox, Totals, flush_outboxes


class Named(msgspec.Struct):
    """A document that is quickly made."""

    name: str


@pytest.fixture
def box(tmp_path: Path) -> JobOutbox:
    box = JobOutbox(tmp_path / "outbox" / "drop.job")
    box.create()
    return box


def success(name: str, server: str = "gpu0", **more: object) -> bytes:
    record = {"id": name, "prompt": "p", "response": f"answer of {name}", "model": "tiny", "server": server}
    return msgspec.json.encode(record | {"duration_s": 1.5, "prompt_tokens": 3, "response_tokens": 5} | more)


def failure(name: str, code: str) -> bytes:
    return msgspec.json.encode({"id": name, "code": code, "message": f"{name} went wrong", "duration_s": 0.25})


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_successes_and_failures_are_kept_apart_in_input_order(box: JobOutbox) -> None:
    rows = [
        (1, Outcome.SUCCEEDED, success("b")),
        (2, Outcome.FAILED, failure("x", "bad_json")),
        (3, Outcome.SUCCEEDED, success("a")),
        (4, Outcome.CANCELLED, failure("y", "cancelled")),
    ]
    box.write_whole(rows, responses=False)
    assert [line["id"] for line in lines(box.directory / "results.jsonl")] == ["b", "a"]
    assert [line["id"] for line in lines(box.directory / "errors.jsonl")] == ["x", "y"]
    assert not box.responses.exists()


def test_totals_add_up(box: JobOutbox) -> None:
    rows = [
        (1, Outcome.SUCCEEDED, success("a", truncated=True)),
        (2, Outcome.SUCCEEDED, success("b", server="gpu1")),
        (3, Outcome.SUCCEEDED, success("c")),
        (4, Outcome.FAILED, failure("d", "context_exceeded")),
        (5, Outcome.FAILED, failure("e", "context_exceeded")),
        (6, Outcome.FAILED, failure("f", "brand_new_code")),
    ]
    totals = box.write_whole(rows, responses=False)
    assert totals.outcomes == {"succeeded": 3, "failed": 3}
    assert totals.serial_s == pytest.approx(5.25)
    assert (totals.prompt_tokens, totals.response_tokens, totals.truncated) == (9, 15, 1)
    assert {name: use.requests for name, use in totals.servers.items()} == {"gpu0": 2, "gpu1": 1}
    assert (totals.servers_of("tiny"), totals.servers_of("large")) == (["gpu0", "gpu1"], [])
    group = totals.failures["context_exceeded"]
    assert (group.requests, group.example) == (2, "d went wrong")
    assert totals.failures["brand_new_code"].requests == 1


def test_the_time_of_several_answers_beside_each_other_is_that_of_all_their_slots(box: JobOutbox) -> None:
    totals = box.write_whole([(1, Outcome.SUCCEEDED, success("a", beside_s=4.5))], responses=False)
    assert (totals.serial_s, totals.busy_s, totals.servers["gpu0"].busy_s) == (6.0, {"gpu0": 6.0}, 6.0)


def test_the_speed_of_a_server_is_over_the_time_it_worked_for_the_job(box: JobOutbox) -> None:
    at = ["2026-11-24T23:59:58.000Z", "2026-11-24T23:59:59.500Z", "2026-11-25T00:00:00.000Z"]
    rows = [
        (1, Outcome.SUCCEEDED, success("a", started_at=at[1], finished_at=at[2], response_tokens=30)),
        (2, Outcome.SUCCEEDED, success("b", started_at=at[0], finished_at=at[1], response_tokens=20)),
        (3, Outcome.SUCCEEDED, success("c", server="old")),
    ]
    servers = box.write_whole(rows, responses=False).servers
    assert servers["gpu0"].document("0.24", 60.0) == ServerWork(2, 50, 3.0, 25.0, "0.24")
    assert servers["old"].document(None, 60.0).tokens_per_s is None


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b\x0c\x1c\x1d\x1e\r"])
@pytest.mark.parametrize("form", ["as it is", "batch"])
def test_every_result_is_one_line_to_any_reader(box: JobOutbox, end: str, form: str) -> None:
    text = f"before{end}after\\{end}"
    good = success("a", response=text, prompt=text, input={text: text}, line=1, attempts=1, url="/v1/completions")
    bad = msgspec.json.encode({"id": text, "line": 2, "code": "bad_request", "message": text, "attempts": 1})
    line_of = partial(batch_line, "job") if form == "batch" else None
    box.write_whole([(1, Outcome.SUCCEEDED, good), (2, Outcome.FAILED, bad)], responses=True, line_of=line_of)
    names = ("results.jsonl", "errors.jsonl", "responses/a.json")
    for path in (box.directory / name for name in names):
        [line] = path.read_text("utf-8").splitlines()
        assert text in leaves(json.loads(line))
    assert (box.responses / "a.txt").exists()


def leaves(value: object) -> list[object]:
    """The values in a document, at any depth."""
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list) else [value]


def test_a_response_is_a_record_and_a_text(box: JobOutbox) -> None:
    with box.response_files() as write:
        write(1, success("a", response="Grüße\n\n* one"))
        write(2, success("../b"))
    assert json.loads((box.responses / "a.json").read_bytes())["prompt"] == "p"
    assert (box.responses / "a.txt").read_text("utf-8") == "Grüße\n\n* one\n"
    assert sorted(path.name for path in box.responses.iterdir()) == ["__b.2.json", "__b.2.txt", "a.json", "a.txt"]


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("plain *text*", "plain *text*"),
        ("\n\n  one\r\ntwo \n\n", "  one\ntwo"),
        ("```markdown\n# Title\n\nText\n```", "# Title\n\nText"),
        ("```python\nprint()\n```", "```python\nprint()\n```"),
        ("```md\na\n```\nand\n```md\nb\n```", "```md\na\n```\nand\n```md\nb\n```"),
        ("Yes.<|im_end|>\n<|im_start|>", "Yes."),
        ("a < b and <b>bold</b>", "a < b and <b>bold</b>"),
        ("bell\x07 and\ttab", "bell and\ttab"),
    ],
)
def test_the_text_of_a_response_has_no_artefacts(tmp_path: Path, response: str, text: str) -> None:
    box = JobOutbox(tmp_path / "o", ".md")
    with box.response_files() as write:
        write(1, success("a", response=response))
    assert (box.responses / "a.md").read_text() == f"{text}\n"
    assert json.loads((box.responses / "a.json").read_bytes())["response"] == response
    assert not (box.responses / "a.txt").exists()


def test_publishing_again_overwrites_what_was_half_done(box: JobOutbox) -> None:
    (box.directory / "results.jsonl").write_text('{"id": "torn')
    (box.directory / ".results.jsonl.tmp").write_text("left over")
    box.write_whole([(1, Outcome.SUCCEEDED, success("a"))], responses=True)
    assert [line["id"] for line in lines(box.directory / "results.jsonl")] == ["a"]
    assert sorted(p.name for p in box.directory.iterdir()) == ["errors.jsonl", "responses", "results.jsonl"]
    assert sorted(p.name for p in box.responses.iterdir()) == ["a.json", "a.txt"]


def test_a_job_without_results_has_both_files_empty(box: JobOutbox) -> None:
    assert not box.write_whole([], responses=True).outcomes
    assert (box.directory / "results.jsonl").read_bytes() == (box.directory / "errors.jsonl").read_bytes() == b""


def test_a_reader_never_sees_a_file_that_is_being_written(box: JobOutbox) -> None:
    box.write_whole([(1, Outcome.SUCCEEDED, success("old"))], responses=False)

    def rows() -> object:
        yield 1, Outcome.SUCCEEDED, success("new")
        assert [line["id"] for line in lines(box.directory / "results.jsonl")] == ["old"]

    box.write_whole(rows(), responses=False)  # type: ignore[arg-type]
    assert [line["id"] for line in lines(box.directory / "results.jsonl")] == ["new"]


@pytest.mark.parametrize("torn", [b"", b"{", b'{"requests": 1', b"\0" * 64, b"[]"])
def test_a_torn_summary_counts_as_none(box: JobOutbox, torn: bytes) -> None:
    assert box.valid_summary() is None
    (box.directory / "summary.json").write_bytes(torn)
    assert box.valid_summary() is None
    box.write_summary(Counts(1, 0, 1, 0, 0, 2.5))
    assert box.valid_summary() == EarlierSummary(requests=1, failed=1, wall_s=2.5)


def test_a_summary_of_another_version_is_one(box: JobOutbox) -> None:
    (box.directory / "summary.json").write_bytes(b'{"schema": 1, "name": "a.jsonl", "owner": 7, "more": []}')
    assert box.valid_summary() == EarlierSummary(name="a.jsonl", owner=7)


@pytest.mark.parametrize(
    ("jobs", "responses", "whole"),
    [(1, 0, 0), (1, 5, 0), (1, 20, 1), (2, 0, 1)],
    ids=["one", "few", "many", "two jobs"],
)
def test_nothing_of_a_published_job_is_left_to_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, responses: int, whole: int
) -> None:
    """Its input is deleted right afterwards. One call for the whole file system is for many files only: it also waits
    for everything that others write."""
    disk = Disk(monkeypatch)
    boxes = [JobOutbox(tmp_path / "outbox" / f"job{number}") for number in range(jobs)]
    for some in boxes:
        some.create()
        rows = [(line, Outcome.SUCCEEDED, success(f"r{line}")) for line in range(1, responses + 1)]
        some.write_whole(rows, responses=bool(responses))
        some.write_summary(Named(""))
    flush_outboxes(boxes)
    assert disk.whole == whole
    assert disk.missing(*(tmp_path / "outbox").rglob("*"), tmp_path / "outbox") == []


def test_a_flush_of_nothing_asks_nothing_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    flush_outboxes([])
    assert (disk.whole, disk.order) == (0, [])


def test_outboxes_that_cannot_be_flushed_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        flush_outboxes([JobOutbox(tmp_path / "nowhere" / "x"), JobOutbox(tmp_path / "nowhere" / "y")])
    with pytest.raises(FileNotFoundError):
        flush_outboxes([JobOutbox(tmp_path / "nowhere" / "x")])


def test_an_answer_of_an_earlier_job_counts_as_any_but_for_no_server_time_or_token(box: JobOutbox) -> None:
    rows = [
        (1, Outcome.SUCCEEDED, success("a")),
        (
            2,
            Outcome.SUCCEEDED,
            success("b", server="gpu1", copied_from="20261123-133648-darg", truncated=True, ungrounded=["/name"]),
        ),
    ]
    totals = box.write_whole(rows, responses=False)
    assert totals.outcomes == {"succeeded": 2}
    assert (totals.copied, totals.prompt_tokens, totals.response_tokens, totals.serial_s) == (1, 3, 5, 1.5)
    assert (set(totals.servers), totals.truncated, totals.models) == ({"gpu0"}, 1, {"tiny"})
    assert (totals.ungrounded, totals.busy_s) == (1, {"gpu0": 1.5})


def test_what_a_record_does_not_say_is_not_made_up() -> None:
    """A request that never got to a server has no model, server, tokens or time."""
    totals = Totals()
    totals.add(Outcome.SUCCEEDED, b'{"id": "a"}')
    totals.add(Outcome.EXPIRED, b'{"id": "b", "code": "expired"}')
    assert (totals.models, totals.servers) == (set(), {})
    assert (totals.serial_s, totals.prompt_tokens, totals.response_tokens) == (0, 0, 0)
    assert (totals.truncated, totals.ungrounded, totals.copied) == (0, 0, 0)
    assert totals.failures["expired"].requests == 1


def test_answers_with_values_that_are_not_in_their_prompt_are_counted_once_each() -> None:
    totals = Totals()
    for ungrounded in ([], ["/name"], ["/name", "/year"]):
        totals.add(Outcome.SUCCEEDED, success("a", ungrounded=ungrounded))
    assert totals.ungrounded == 2


def test_a_server_without_a_span_of_time_has_no_speed() -> None:
    """A clock that was set back must not show a speed below zero, nor a single instant divide by it."""
    at = ["2026-11-24T23:59:58.000Z", "2026-11-24T23:59:59.500Z"]
    for started, finished in ((at[0], at[0]), (at[1], at[0]), ("", at[0]), (at[0], "")):
        totals = Totals()
        totals.add(Outcome.SUCCEEDED, success("a", started_at=started, finished_at=finished))
        assert totals.servers["gpu0"].document("0.24", 60.0) == ServerWork(1, 5, 1.5, None, "0.24")


def test_a_vector_has_a_record_and_no_text(box: JobOutbox) -> None:
    with box.response_files() as write:
        write(1, b'{"id": "a", "embedding": [1.5]}')
    assert [path.name for path in box.responses.iterdir()] == ["a.json"]


def test_an_empty_answer_is_an_answer(box: JobOutbox) -> None:
    with box.response_files() as write:
        write(1, success("a", response=""))
    assert (box.responses / "a.txt").read_text() == "\n"


def test_response_files_are_of_successes_only(box: JobOutbox) -> None:
    """A program that reads the directory takes whatever lies there for an answer."""
    box.write_whole(
        [(1, Outcome.SUCCEEDED, success("a")), (2, Outcome.FAILED, failure("b", "stalled"))], responses=True
    )
    assert sorted(path.name for path in box.responses.iterdir()) == ["a.json", "a.txt"]


def test_a_line_may_have_another_form_than_the_record(box: JobOutbox) -> None:
    rows = [(1, Outcome.SUCCEEDED, success("a")), (2, Outcome.FAILED, failure("b", "stalled"))]
    totals = box.write_whole(
        rows, responses=True, line_of=lambda outcome, record: b'{"%s": %d}' % (outcome.value.encode(), len(record))
    )
    assert (box.directory / "results.jsonl").read_bytes() == b'{"succeeded": %d}\n' % len(rows[0][2])
    assert (box.directory / "errors.jsonl").read_bytes() == b'{"failed": %d}\n' % len(rows[1][2])
    assert totals.outcomes == {"succeeded": 1, "failed": 1}
    assert json.loads((box.responses / "a.json").read_bytes())["response"] == "answer of a"


def test_the_state_of_a_job_is_written_even_before_its_first_result(tmp_path: Path) -> None:
    box = JobOutbox(tmp_path / "outbox" / "drop.job")
    assert box.last_status() is None
    box.write_status(Named("a longer name"))
    box.write_status(Named("Grüße"))
    assert box.last_status() == EarlierStatus(name="Grüße")
    assert (box.directory / "status.json").read_text() == '{\n  "name": "Grüße"\n}\n', "people read it, too"
    assert [path.name for path in box.directory.iterdir()] == ["status.json"]


def test_the_size_of_all_results_is_that_of_both_files(box: JobOutbox) -> None:
    assert box.whole_bytes() == 0
    (box.directory / "results.jsonl").write_bytes(b"1" * 10)
    assert box.whole_bytes() == 10
    (box.directory / "errors.jsonl").write_bytes(b"2" * 5)
    (box.directory / "status.json").write_bytes(b"3")
    assert box.whole_bytes() == 15


def test_a_disk_that_takes_a_part_first_is_given_the_rest(box: JobOutbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) may write less than it was given; half a summary would count as none."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, content[:7]))
    box.write_summary(Named("Grüße" * 10))
    with box.response_files() as write:
        write(1, success("a"))
    monkeypatch.undo()
    assert box.valid_summary() == EarlierSummary(name="Grüße" * 10)
    assert (box.responses / "a.txt").read_text() == "answer of a\n"


def test_a_disk_that_refuses_leaves_the_file_that_was_there_and_nothing_open(
    box: JobOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.write_summary(Named("first"))
    before = len(os.listdir("/proc/self/fd"))

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(OSError, match="No space"):
            box.write_summary(Named("second"))
        with pytest.raises(OSError, match="No space"), box.response_files() as write:
            write(1, success("a"))
    assert box.valid_summary() == EarlierSummary(name="first")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_under_a_temporary_name_is_not_written_through(box: JobOutbox, tmp_path: Path) -> None:
    """Owners of a job may be able to write into its directory; the daemon must not write elsewhere for them."""
    (tmp_path / "victim").write_text("theirs")
    (box.directory / ".summary.json.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError) as caught:
        box.write_summary(Named(""))
    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "victim").read_text() == "theirs"


def test_results_can_be_read_by_others_who_may_enter_the_outbox(box: JobOutbox) -> None:
    mask = os.umask(0o022)
    try:
        box.write_whole([(1, Outcome.SUCCEEDED, success("a"))], responses=True)
        box.write_summary(Named(""))
    finally:
        os.umask(mask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [*box.directory.rglob("*")]}
    assert modes == {
        "results.jsonl": 0o644, "errors.jsonl": 0o644, "summary.json": 0o644, "responses": 0o755, "a.json": 0o644,
        "a.txt": 0o644,
    }  # fmt: skip
