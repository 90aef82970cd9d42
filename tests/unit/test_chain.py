"""Results of a job and its retries as one, as ``obatchctl results`` reads them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from test_results import Document, exported, failure, outbox, success

from obatchd.cli.obatchctl import main
from obatchd.client.control import ControlClient
from obatchd.errors import DaemonDownError, NotFoundError
from obatchd.results.chain import Chain
from obatchd.results.export import export
from obatchd.results.rows import ResultSet

FIRST, SECOND, THIRD = (f"20261128-10111{number}-abcd" for number in (1, 2, 3))


def place(directory: Path, job: str, rows: list[Document], summary: Document | None = None) -> Path:
    """The outbox of a job; of one that is not over where ``summary`` is None."""
    path = outbox(directory / f"notes.{job}", rows, summary, job=job)
    if summary is not None:
        (path / "summary.json").write_text(json.dumps({"job": job, **summary}))
    return path


def ask(prompt: int, **more: Any) -> Document:
    return failure(prompt, prompt=f"note {prompt}", **more)


@pytest.fixture
def jobs(tmp_path: Path) -> dict[str, Document]:
    """A job of 40 of which 5 were answered, 33 more by its retry, as the daemon tells of them."""
    first = [success(line, "words") if line <= 5 else ask(line) for line in range(1, 41)]
    second = [success(line, "more words") if line <= 38 else ask(line, code="timeout") for line in range(6, 41)]
    return {
        FIRST: {"job": FIRST, "outbox": str(place(tmp_path, FIRST, first, {"requests": 40})), "retries": [SECOND]},
        SECOND: {"job": SECOND, "outbox": str(place(tmp_path, SECOND, second, {"requests": 35})), "retries": None},
    }


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, jobs: dict[str, Document]) -> dict[str, Document]:
    def get(_: ControlClient, path: str, job: str) -> Document:
        assert path == "jobs"
        if job not in jobs:
            raise NotFoundError(f"no job {job}")
        return jobs[job]

    monkeypatch.setattr(ControlClient, "get", get)
    return jobs


def obatchctl(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["results", *map(str, arguments)], catch_exceptions=False)


def test_the_first_job_says_what_became_of_all_its_requests(told: dict[str, Document], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    shown = obatchctl(FIRST, "-o", table).stdout.splitlines()
    assert f"40 requests = 38 answered + 2 failed, 33 of them in {SECOND}" in shown
    assert "  2 timeout: too long" in shown
    assert f"  try these again:  obatchctl retry {FIRST}" in shown
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["id"] for row in rows] == [f"n{line}" for line in range(1, 41)]
    assert [row["attempt_job"] for row in rows] == [FIRST] * 5 + [SECOND] * 35
    document = json.loads(obatchctl(FIRST, "-o", table, "--json").stdout)
    assert (document["in"], document["succeeded"], document["failed"]) == (40, 38, 2)
    assert document["retries"] == [{"job": SECOND, "succeeded": 33, "complete": True}]


def test_lines_that_no_retry_can_ask_are_to_be_mended(told: dict[str, Document], tmp_path: Path) -> None:
    refused = [ask(2, code="missing_prompt"), ask(4, code="duplicate_id"), ask(6, code="bad_json", attempts=0)]
    for job, more in ((FIRST, []), (SECOND, [ask(7)])):
        told[job] = {"job": job, "outbox": str(place(tmp_path / "b", job, [success(1, "a"), *refused, *more], {}))}
    lines = obatchctl(FIRST).stderr.splitlines()
    assert "  3 cannot be retried: mend lines 2, 4, 6 of the drop and submit them" in lines
    assert not any("try these again" in line for line in lines)
    assert json.loads(obatchctl(FIRST, "--json").stdout)["retry"] is None
    lines = obatchctl(SECOND).stderr.splitlines()
    assert lines[-2:] == [
        f"  try these again:  obatchctl retry {SECOND}",
        "  3 cannot be retried: mend lines 2, 4, 6 of the drop and submit them",
    ]


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "csv"])
def test_one_job_alone_is_exported_as_ever(told: dict[str, Document], form: Any) -> None:
    alone = exported(Path(told[FIRST]["outbox"]), form)[0]
    assert b"attempt_job" not in alone
    assert obatchctl(FIRST, "--only-this", "--format", form).stdout_bytes == alone
    second = exported(Path(told[SECOND]["outbox"]), form)[0]  # nobody has retried it
    assert obatchctl(SECOND, "--format", form).stdout_bytes == second
    assert "40 requests = 5 answered + 35 failed\n" in obatchctl(FIRST, "--only-this").stderr


def test_the_best_of_every_request_counts_and_the_latest_of_equals(tmp_path: Path) -> None:
    first = place(tmp_path, FIRST, [success(1, "a"), *(ask(line) for line in range(2, 8))], {})
    second = place(
        tmp_path, SECOND,
        [success(2, "b"), success(3, "b"), ask(4, code="b"), {**ask(5, code="b"), "outcome": "cancelled"}, ask(7)], {},
    )  # fmt: skip
    third = place(tmp_path, THIRD, [success(3, "c"), {**ask(4), "outcome": "expired"}, success(6, "c"), ask(2)], {})
    chain = Chain(first, [(SECOND, second), (THIRD, third)])
    rows = [(row.record["line"], row.record["attempt_job"], row.record.get("response")) for row in chain.rows()]
    assert rows == [
        (1, FIRST, "a"), (2, SECOND, "b"), (3, THIRD, "c"), (4, SECOND, None), (5, FIRST, None), (6, THIRD, "c"),
        (7, SECOND, None),
    ]  # fmt: skip
    lines = export(chain, "json", io.BytesIO()).lines(chain)
    assert f"7 requests = 4 answered + 3 failed, 1 of them in {SECOND}, 2 in {THIRD}" in lines
    vain = place(tmp_path, "20261128-101114-abcd", [ask(4)], {})
    chain = Chain(first, [(SECOND, second), ("20261128-101114-abcd", vain)])
    assert f"7 requests = 3 answered + 4 failed, 2 of them in {SECOND}" in export(chain, "json", io.BytesIO()).lines(
        chain
    )


def test_rows_that_fit_no_request_are_told_and_not_mixed_in(tmp_path: Path) -> None:
    first = place(tmp_path, FIRST, [success(1, "a"), ask(2), {**ask(3), "id": "n2", "code": "duplicate_id"}], {})
    strange = [success(1, "not asked again"), {**success(2, "x"), "prompt": "another"}, {**success(3, "x"), "id": "n9"}]
    chain = Chain(first, [(SECOND, place(tmp_path, SECOND, [*strange[1:], success(9, "x")], {}))])
    lines = export(chain, "json", io.BytesIO()).lines(chain)
    assert f"3 requests = 1 answered + 2 failed, 0 of them in {SECOND}" in lines
    strange = f"  3 answers of the retry {SECOND} belong to no request of this job"
    assert f"{strange}; see: obatchctl results {SECOND} --only-this" in lines
    assert export(chain, "json", io.BytesIO()).lines(chain) == lines  # read again, counted once


def test_lines_that_nobody_can_read_are_rows_in_a_chain_too(tmp_path: Path) -> None:
    first = place(tmp_path, FIRST, [success(1, "a"), ask(9)], {})
    with open(first / "results.jsonl", "a") as results:
        results.write('torn\n"torn"\n')
    chain = Chain(first, [(SECOND, place(tmp_path, SECOND, [success(9, "b")], {}))])
    assert [row.name for row in chain.rows()] == [row.name for row in ResultSet(first).rows()]
    assert len(list(chain.rows())) == 4


def test_a_retry_that_is_not_over_and_one_that_is_gone(tmp_path: Path) -> None:
    first = place(tmp_path, FIRST, [success(1, "a"), ask(2), ask(3)], {})
    second = place(tmp_path, SECOND, [success(3, "b")])
    chain = Chain(first, [(SECOND, second), (THIRD, tmp_path / "nowhere")])
    assert export(chain, "json", io.BytesIO()).lines(chain) == [
        f"3 requests = 2 answered + 1 failed, 1 of them in {SECOND}",
        "  1 context_exceeded: too long",
        f"  {SECOND} is not over: its other answers are still to come",
        f"  {THIRD} is not counted: its results are not there any more",
    ]


def test_lines_of_a_batch_file_are_one_with_those_of_its_retry(tmp_path: Path) -> None:
    def line(job: str, number: int, *, good: bool) -> Document:
        body = {"choices": [{"message": {"content": "yes"}}]} if good else {"error": {"code": "500", "message": "no"}}
        response = {"status_code": 200 if good else 500, "body": body}
        return {"id": f"batch_req_{job}-{number}", "custom_id": f"c{number}", "response": response, "error": None}

    def files(job: str, **rows: list[Document]) -> Path:
        path = place(tmp_path, job, [], {})
        for name, lines in rows.items():
            (path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        return path

    first = files(FIRST, results=[line(FIRST, 1, good=True)], errors=[line(FIRST, 2, good=False)])
    chain = Chain(first, [(SECOND, files(SECOND, results=[line(SECOND, 2, good=True)]))])
    assert [(row.name, row.record["attempt_job"]) for row in chain.rows()] == [("c1", FIRST), ("c2", SECOND)]


def test_a_retry_that_is_erased_this_moment_is_passed_over(told: dict[str, Document]) -> None:
    del told[SECOND]
    assert "40 requests = 5 answered + 35 failed\n" in obatchctl(FIRST).stderr


def test_without_a_daemon_nobody_knows_of_retries_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, jobs: dict[str, Document], tmp_path: Path
) -> None:
    def get(*_: Any) -> Document:
        raise DaemonDownError("obatchd is not running")

    monkeypatch.setattr(ControlClient, "get", get)
    (tmp_path / "spool" / "outbox").mkdir(parents=True)
    path = Path(jobs[FIRST]["outbox"])
    path.rename(tmp_path / "spool" / "outbox" / path.name)
    run = CliRunner().invoke(main, ["--spool", str(tmp_path / "spool"), "results", FIRST])
    assert "40 requests = 5 answered + 35 failed\n" in run.stderr
    assert run.stderr.startswith("obatchd does not answer: nobody can say whether this job was retried.\n")
    assert ResultSet(tmp_path / "spool" / "outbox" / path.name).notes() == []
    run = CliRunner().invoke(main, ["--spool", str(tmp_path / "spool"), "results", "other"])
    assert run.exit_code == 3
    assert run.stderr == f"obatchd is not running\nResults of these jobs can be read meanwhile:\n  {path.name}\n"
