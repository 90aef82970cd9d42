"""What obatchctl shows of jobs to people: lists, one job, the end of a submission, sums by owner."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from obatchd.cli.obatchctl import main
from obatchd.cli.views import text
from obatchd.client.control import ControlClient
from obatchd.documents.jobs import Failure, JobDetails, JobDocument, JobTotals, OwnerUsage, SettingsUsed, Usage

ME = os.getuid()
RED, GREEN, YELLOW = (click.style("x", fg=colour).partition("x")[0] for colour in ("red", "green", "yellow"))


def job(**changes: Any) -> JobDocument:
    """A job of 300 requests that is over and all well, but for ``changes``."""
    totals = JobTotals(125.0, 2.4, 80.0, 3000, 10_000, 31.25, 0, 0, 0)
    made = JobDocument(
        "20261128-120000-abcd", "notes.jsonl", ME, "done", "small", "normal", "2026-11-28T12:00:00.000Z",
        "2026-11-28T12:02:05.000Z", [], None, None, False, 300, 300, 300, 0, 0, 0, outbox="/out/notes", totals=totals,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def doubtful(truncated: int, ungrounded: int, copied: int = 0) -> JobTotals:
    return JobTotals(125.0, 2.4, 80.0, 3000, 10_000, 31.25, truncated, ungrounded, copied)


def shown(monkeypatch: pytest.MonkeyPatch, *arguments: str, answer: Any) -> Result:
    """What a command prints on a terminal whose daemon answers this document."""
    document = msgspec.to_builtins(answer)
    monkeypatch.setattr(ControlClient, "get", lambda self, path, *names, **query: document)
    result = CliRunner().invoke(main, ["--spool", "/nowhere", *arguments], color=True)
    assert result.exit_code == 0, result.output
    return result


def row(monkeypatch: pytest.MonkeyPatch, shown_job: JobDocument) -> dict[str, str]:
    """The cells of its row in the list, by heading; the last one is the time."""
    heading, line, *_ = shown(monkeypatch, "jobs", answer={"jobs": [shown_job]}).stdout.splitlines()
    names = click.unstyle(heading).split("  ")
    names = [name.strip() for name in names if name.strip()]
    return {"line": line, "names": " ".join(names), "plain": " ".join(click.unstyle(line).split())}


def test_a_job_that_waits_for_servers_says_so_in_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = job(state="running", succeeded=0, totals=None, finished_at=None, held_up="no server works; far: no answer")
    _, line, why = shown(monkeypatch, "jobs", answer={"jobs": [waits]}).stdout.splitlines()
    assert YELLOW in line and "waiting" in line
    assert click.unstyle(why) == "20261128-120000-abcd waits: no server works; far: no answer"


@pytest.mark.parametrize(
    ("counts", "state", "colour", "cells"),
    [
        ({}, "done", GREEN, "██████ 100 % 300/300 0 2.4 80.0 2 min 5 s"),
        ({"succeeded": 298, "failed": 2}, "done", GREEN, "██████ 100 % 298/300 2 0 2.4 80.0 2 min 5 s"),
        ({"succeeded": 0, "failed": 300}, "failed", RED, "██████ 100 % 0/300 300 0 2.4 80.0 2 min 5 s"),
        ({"succeeded": 43, "cancelled": 257}, "cancelled", YELLOW, "░░░░░░ 14 % 43/300 0 2.4 80.0 2 min 5 s"),
        ({"succeeded": 150, "expired": 150}, "expired", YELLOW, "███░░░ 50 % 150/300 0 2.4 80.0 2 min 5 s"),
        ({"succeeded": 0, "failed": 200, "expired": 100}, "expired", YELLOW,
         "████░░ 66 % 0/300 200 0 2.4 80.0 2 min 5 s"),
    ],
)  # fmt: skip
def test_a_job_that_is_over_shows_how_it_ended_and_keeps_its_speed_and_time(
    monkeypatch: pytest.MonkeyPatch, counts: dict[str, int], state: str, colour: str, cells: str
) -> None:
    cell = row(monkeypatch, job(**counts))
    assert cell["plain"] == f"20261128-120000-abcd {state} notes.jsonl {cells}"
    assert f"{colour}{state}" in cell["line"]
    if counts.get("failed"):
        assert click.style(str(counts["failed"]).rjust(6), fg="red") in cell["line"]


@pytest.mark.parametrize(
    ("state", "asked", "changes"),
    [
        ("failed", "done", {"succeeded": 0, "failed": 300}),
        ("cancelled", "done", {"succeeded": 43, "cancelled": 257}),
        ("expired", "done", {"succeeded": 150, "expired": 150}),
        ("waiting", "running", {"state": "running", "held_up": "no server works"}),
        ("paused", "running", {"state": "running", "paused": True}),
        ("cancelling", "running", {"state": "cancelling"}),
    ],
)
def test_every_word_of_the_state_column_chooses_jobs(
    monkeypatch: pytest.MonkeyPatch, state: str, asked: str, changes: dict[str, Any]
) -> None:
    others = [job(), job(state="running")]
    jobs = msgspec.to_builtins([*others, *[job(job=str(number), **changes) for number in range(3)]])
    queries: list[dict[str, Any]] = []
    monkeypatch.setattr(ControlClient, "get", lambda self, path, **query: queries.append(query) or {"jobs": jobs})
    result = CliRunner().invoke(main, ["jobs", "--state", state, "--limit", "2", "--json"])
    assert [one["job"] for one in json.loads(result.stdout)["jobs"]] == ["0", "1"]
    assert (queries[0]["state"], queries[0]["limit"]) == (asked, 10_000)


def test_a_job_in_work_shows_what_succeeded_and_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    running = job(state="running", totals=None, succeeded=40, failed=5, in_flight=8, requests_per_s=1.0,
                  tokens_per_s=20.0, eta_s=255.0)  # fmt: skip
    cell = row(monkeypatch, running)
    assert cell["plain"].endswith("notes.jsonl ░░░░░░ 15 % 40/300 5 8 1.0 20.0 4 min 15 s")
    assert "LEFT/TOOK" in cell["names"]


def test_answers_that_need_a_look_are_told_in_yellow_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"jobs": [job(totals=doubtful(1, 0)), job(job="20261128-130000-efgh", totals=doubtful(3, 1200))]}
    told = shown(monkeypatch, "jobs", answer=listed).stdout.splitlines()[3:]
    assert told == [
        click.style(line, fg="yellow")
        for line in (
            "1 answer was cut at the token limit:  obatchctl results 20261128-120000-abcd --only truncated",
            "3 answers were cut at the token limit:  obatchctl results 20261128-130000-efgh --only truncated",
            "1,200 answers have a value that is not in the prompt:  "
            "obatchctl results 20261128-130000-efgh --only ungrounded",
        )
    ]
    many = {"jobs": [job(totals=doubtful(1, 1))] * 10}
    told = shown(monkeypatch, "jobs", answer=many).stdout.splitlines()[11:]
    assert len(told) == 6 and told[-1] == "… and 15 more lines; obatchctl job JOB shows them"
    [line] = [
        line
        for line in shown(monkeypatch, "job", "x", answer=listed["jobs"][0]).stdout.splitlines()
        if "--only" in line
    ]
    assert line.startswith(YELLOW)


def test_the_list_names_owners_where_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {7: pwd.struct_passwd(("ada", "", 7, 7, "", "", ""))}[uid])
    alone = shown(monkeypatch, "jobs", answer={"jobs": [job()]}).stdout
    assert "OWNER" not in alone
    lines = shown(monkeypatch, "jobs", answer={"jobs": [job(owner=7), job(owner=4711)]}).stdout.splitlines()
    assert [click.unstyle(line).split()[0] for line in lines] == ["OWNER", "ada", "4711"]


def test_the_list_fits_80_columns_with_owners_and_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_width", lambda: 80)
    long = job(owner=4711, name="answers-of-the-whole-archive.jsonl", succeeded=12_298, failed=2, requests=12_300)
    lines = [click.unstyle(line) for line in shown(monkeypatch, "jobs", answer={"jobs": [long]}).stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert all(word in lines[0] for word in ("OWNER", "JOB", "STATE", "NAME", "DONE", "FAILED", "LEFT/TOOK"))


def test_one_job_shows_why_requests_failed_its_settings_and_its_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("ada", "", uid, uid, "", "", "")))
    used = SettingsUsed("small", [8192], {"seed": 1}, 300, "x" * 64, "json", ["name"], "auto", "y" * 64,
                        template="Summarise:\n{note}", id_column="mrn")  # fmt: skip
    failures = {
        "timeout": Failure(2, "it took too long", "raise the limit"),
        "poison": Failure(38, "it crashes", "look at the prompt"),
    }
    one = job(succeeded=260, failed=40, totals=doubtful(3, 0, copied=40), details=JobDetails(used, failures),
              notes=["a note"])  # fmt: skip
    lines = click.unstyle(shown(monkeypatch, "job", "x", answer=one).stdout).splitlines()
    for line in (
        f"owner                ada ({ME})",
        "state                done",
        "requests             300: 260 succeeded, 40 failed",
        "took                 2 min 5 s",
        "speed                2.4 requests/s, 80.0 tokens/s",
        "tokens               3,000 of prompts, 10,000 of answers",
        "GPU-seconds          31.2",
        "copied               40 answers of earlier jobs",
        "model                small",
        "context length       8192",
        'options              {"seed": 1}',
        "template             Summarise:↵{note}",
        "id column            mrn",
        "note: a note",
    ):
        assert line in lines
    assert lines[-5:] == [
        "Requests without an answer:",
        "  38 poison: it crashes",
        "    → look at the prompt",
        "  2 timeout: it took too long",
        "    → raise the limit",
    ]
    assert not [line for line in lines if "sha256" in line or "None" in line]


def test_causes_that_are_not_known_yet_are_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    used = SettingsUsed("small", [8192], {}, 300, "x", "", [], "auto", None)
    details = JobDetails(used, {"timeout": Failure(2, "it took too long", "raise the limit")})
    running = job(state="running", succeeded=10, failed=5, totals=None, details=details)
    last = shown(monkeypatch, "job", "x", answer=running).stdout.splitlines()[-1]
    assert last == "  3 more; errors.jsonl of the results has their causes when the job is over"


def test_a_job_of_an_earlier_version_and_a_refused_drop_are_shown_as_far_as_they_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert row(monkeypatch, job(totals=None))["plain"].endswith("██████ 100 % 300/300 0 – – –")
    refused = job(state="refused", requests=0, succeeded=0, totals=None, outbox=None, refused_to="/failed/x",
                  notes=["it is empty"])  # fmt: skip
    lines = click.unstyle(shown(monkeypatch, "job", "x", answer=refused).stdout).splitlines()
    assert "refused to           /failed/x" in lines and lines[-1] == "note: it is empty"


def test_waiting_ends_with_what_failed_and_what_needs_a_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used = SettingsUsed("small", [8192], {}, 300, "x", "", [], "auto", None)
    details = JobDetails(used, {"timeout": Failure(2, "it took too long", "raise the limit")})
    ended = msgspec.to_builtins(job(succeeded=298, failed=2, totals=doubtful(3, 1), details=details, notes=["n"]))
    monkeypatch.setattr(ControlClient, "submit", lambda self, path, settings, token, again: ended)
    monkeypatch.setattr(ControlClient, "get", lambda self, path, *names, **query: ended)
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n')
    result = CliRunner().invoke(
        main, ["--spool", "/nowhere", "submit", str(tmp_path / "a.jsonl"), "--wait"], color=True
    )
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[1] == "  note: n"
    assert click.style("2 failed", fg="red") in lines[2] and click.style("done", fg="green") in lines[2]
    assert [click.unstyle(line) for line in lines[3:]] == [
        "  3 answers were cut at the token limit:  obatchctl results 20261128-120000-abcd --only truncated",
        "  1 answer has a value that is not in the prompt:  obatchctl results 20261128-120000-abcd --only ungrounded",
        "  2 timeout: it took too long",
        "    → raise the limit",
        "  cost: 31.2 GPU-seconds; 3,000 tokens of prompts, 10,000 of answers",
        "see the answers:  obatchctl results 20261128-120000-abcd",
    ]
    assert lines[3].strip().startswith(YELLOW)


def test_notes_on_a_drop_are_told_when_it_is_submitted_and_not_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = msgspec.to_builtins(job(state="running", totals=None, notes=['"modle" in 40 requests']))
    monkeypatch.setattr(ControlClient, "submit", lambda self, path, settings, token, again: taken)
    monkeypatch.setattr(ControlClient, "get", lambda self, path, *names, **query: {**taken, "state": "done"})
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n')
    command = ["--spool", "/nowhere", "submit", str(tmp_path / "a.jsonl")]
    assert CliRunner().invoke(main, command).stdout.splitlines()[1:] == ['  note: "modle" in 40 requests']
    assert CliRunner().invoke(main, [*command, "--wait"]).stdout.splitlines()[1] == '  note: "modle" in 40 requests'
    assert CliRunner().invoke(main, [*command, "--wait"]).stdout.count("note:") == 1
    later = {**taken, "state": "done", "notes": [*taken["notes"], "a later note"]}
    monkeypatch.setattr(ControlClient, "get", lambda self, path, *names, **query: later)
    assert CliRunner().invoke(main, [*command, "--wait"]).stdout.splitlines()[3] == "  note: a later note"


# Results.


def outbox(directory: Path) -> Path:
    place = directory / "a.jsonl.job1"
    place.mkdir()
    rows = [
        {"id": "a", "line": 1, "outcome": "succeeded", "prompt": "p", "response": "whole", "truncated": False},
        {"id": "b", "line": 2, "outcome": "succeeded", "prompt": "p", "response": "cut", "truncated": True},
        {"id": "c", "line": 3, "outcome": "succeeded", "prompt": "p", "response": '{"x": 1}', "data": {"x": 1},
         "truncated": True, "ungrounded": [{"field": "x", "value": 1}], "copied_from": "job0"},
    ]  # fmt: skip
    (place / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    failed = {"id": "d", "line": 4, "outcome": "failed", "code": "timeout", "message": "late"}
    (place / "errors.jsonl").write_text(json.dumps(failed) + "\n")
    (place / "summary.json").write_text(json.dumps({"job": "job1", "requests": 4}))
    return place


@pytest.mark.parametrize(
    ("only", "ids"), [("truncated", ["b", "c"]), ("ungrounded", ["c"]), ("failed", ["d"])]
)  # fmt: skip
def test_results_shows_only_what_needs_a_look_and_counts_everything(tmp_path: Path, only: str, ids: list[str]) -> None:
    place = outbox(tmp_path)
    for ending in ("jsonl", "csv"):
        target = tmp_path / f"out.{ending}"
        result = CliRunner().invoke(main, ["results", str(place), "--only", only, "-o", str(target), "--json"])
        assert result.exit_code == 0, result.output
        counted = json.loads(result.stdout)
        assert (counted["in"], counted["truncated"], counted["ungrounded"], counted["failed"]) == (4, 2, 1, 1)
        lines = target.read_text().splitlines()
        found = (
            [json.loads(line)["id"] for line in lines] if ending == "jsonl" else [ln.split(",")[0] for ln in lines[1:]]
        )
        assert found == ids


def test_results_ends_with_what_needs_a_look(tmp_path: Path) -> None:
    place = outbox(tmp_path)
    result = CliRunner().invoke(main, ["results", str(place), "-o", str(tmp_path / "o.csv")], color=True)
    told = [line for line in result.stdout.splitlines() if "--only" in line]
    assert told == [
        click.style("2 answers were cut at the token limit:  obatchctl results job1 --only truncated", fg="yellow"),
        click.style(
            "1 answer has a value that is not in the prompt:  obatchctl results job1 --only ungrounded", fg="yellow"
        ),
    ]
    result = CliRunner().invoke(main, ["results", str(place), "--only", "failed"], color=True)
    assert "--only" not in result.output
    result = CliRunner().invoke(main, ["results", str(place), "--only", "truncated"], color=True)
    assert "  ask these again:  obatchctl retry job1 --only truncated --max-response-tokens N\n" in result.output


# Sums.


def test_usage_is_a_table_by_owner_and_month(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_width", lambda: 80)
    sums = Usage([OwnerUsage(7, "ada", "2026-11", 1310, 1298, 2, 10, 0, 30_000, 1_000_000, 12_345.6, 4.5e6),
                  OwnerUsage(4711, "4711", "2026-10", 1, 1, 0, 0, 0, 3, 4, 0.4, 0.0)])  # fmt: skip
    lines = [click.unstyle(line) for line in shown(monkeypatch, "usage", answer=sums).stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines] == [
        ["OWNER", "MONTH", "DONE", "FAILED", "CANCELLED", "PROMPT", "TOKENS", "ANSWER", "TOKENS", "GPU-SECONDS"],
        ["ada", "2026-11", "1,298", "2", "10", "30,000", "1,000,000", "12,346"],
        ["4711", "2026-10", "1", "3", "4", "0"],
    ]
    monkeypatch.setattr(text, "_width", lambda: 110)
    wide = [click.unstyle(line).split() for line in shown(monkeypatch, "usage", answer=sums).stdout.splitlines()]
    assert [line[-1] for line in wide] == ["KWH", "1.250", "0"]
    few = Usage([OwnerUsage(7, "ada", "2026-11", 1, 1, 0, 0, 0, 3, 4, 0.4, 115.4)])
    assert shown(monkeypatch, "usage", answer=few).stdout.endswith("  below 0.001\n")
    assert shown(monkeypatch, "usage", answer=Usage([])).stdout == "No job has ended in that time.\n"
    assert json.loads(shown(monkeypatch, "usage", "--json", answer=sums).stdout)["usage"][0]["name"] == "ada"


@pytest.mark.parametrize("month", ["november", "2026-13", "2026-11-01", ""])
def test_a_month_is_written_in_one_way(month: str) -> None:
    result = CliRunner().invoke(main, ["usage", "--month", month])
    assert result.exit_code == 2 and "is no month; write it as 2026-11" in result.stderr


def test_usage_asks_for_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(ControlClient, "get", lambda self, path, **query: asked.append((path, query)) or {"usage": []})
    assert CliRunner().invoke(main, ["--spool", "/nowhere", "usage", "--month", "2026-1", "--mine"]).exit_code == 0
    assert asked == [("usage", {"month": "2026-01", "owner": "mine"})]


def test_erasing_says_that_the_sums_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ControlClient, "delete", lambda self, path, *names: {"removed": names[0]})
    monkeypatch.setattr(ControlClient, "get", lambda self, path, *names, **_: {"job": names[0]})
    result = CliRunner().invoke(main, ["--spool", "/nowhere", "rm", "a", "b"])
    assert result.stdout.splitlines() == [
        "a erased", "b erased", "The sums of obatchctl usage stay: they name an owner and a month, and no job."
    ]  # fmt: skip


def test_older_jobs_are_those_of_the_same_list(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"jobs": [job()], "next": job().job}
    for options, again in (
        ((), "obatchctl jobs"),
        (("--mine", "--label", "two words", "--limit", "1"), "obatchctl jobs --mine --label 'two words' --limit 1"),
        (("--state", "done", "--since", "2026-11-20"), "obatchctl jobs --state done --since 2026-11-20T00:00"),
    ):
        lines = shown(monkeypatch, "jobs", *options, answer=answer).stdout.splitlines()
        assert lines[-1] == f"older jobs:  {again} --after 20261128-120000-abcd"


def test_a_word_that_the_daemon_does_not_know_as_a_state_has_older_jobs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = [job(job=f"20261128-12000{n}-abcd", succeeded=0, failed=300) for n in (3, 2, 1)]
    answer = {"jobs": [failed[0], job(), failed[1], failed[2]], "next": None}
    document = json.loads(
        shown(monkeypatch, "jobs", "--state", "failed", "--limit", "2", "--json", answer=answer).stdout
    )
    assert [one["job"] for one in document["jobs"]] == [one.job for one in failed[:2]]
    assert document["next"] == failed[1].job
    document = json.loads(shown(monkeypatch, "jobs", "--state", "failed", "--json", answer=answer).stdout)
    assert len(document["jobs"]) == 3 and document["next"] is None
