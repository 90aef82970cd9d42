"""What a job's outbox holds, and that nobody ever reads half of it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from obatchd.jobs.model import Outcome
from obatchd.spool.outbox import JobOutbox, flush_outboxes


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
    group = totals.failures["context_exceeded"]
    assert (group["requests"], group["example"]) == (2, "d went wrong")
    assert totals.failures["brand_new_code"]["requests"] == 1


def test_the_speed_of_a_server_is_over_the_time_it_worked_for_the_job(box: JobOutbox) -> None:
    at = ["2026-11-24T23:59:58.000Z", "2026-11-24T23:59:59.500Z", "2026-11-25T00:00:00.000Z"]
    rows = [
        (1, Outcome.SUCCEEDED, success("a", started_at=at[1], finished_at=at[2], response_tokens=30)),
        (2, Outcome.SUCCEEDED, success("b", started_at=at[0], finished_at=at[1], response_tokens=20)),
        (3, Outcome.SUCCEEDED, success("c", server="old")),
    ]
    servers = box.write_whole(rows, responses=False).servers
    assert servers["gpu0"].document() == {
        "requests": 2, "response_tokens": 50, "busy_s": 3.0, "tokens_per_s": 25.0
    }  # fmt: skip
    assert servers["old"].document()["tokens_per_s"] is None


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
    box.write_summary({"requests": 1})
    assert box.valid_summary() == {"requests": 1}


def test_one_outbox_and_many_are_flushed_alike(box: JobOutbox, tmp_path: Path) -> None:
    other = JobOutbox(tmp_path / "outbox" / "other.job")
    other.create()
    for some in (box, other):
        some.write_whole([(1, Outcome.SUCCEEDED, success("a"))], responses=True)
        some.write_summary({})
    flush_outboxes([])
    flush_outboxes([box])
    flush_outboxes([box, other])
    (tmp_path / "gone").mkdir()
    with pytest.raises(FileNotFoundError):
        flush_outboxes([JobOutbox(tmp_path / "nowhere" / "x"), JobOutbox(tmp_path / "nowhere" / "y")])
