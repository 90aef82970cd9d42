"""Finding jobs: one way for every command that takes JOB, by those who may see them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from operations_support import Desk, desk
from settings_support import WITHOUT_VERSION_6, in_force
from test_job_commands import ADMIN, ALICE, BOB, NO, handed

from obatchd.cli.commands.jobs import SUMS_STAY
from obatchd.cli.obatchctl import main
from obatchd.client.control import ControlClient
from obatchd.documents.answers import RemovedJobs
from obatchd.errors import ConfigError, ControlError, DaemonDownError, NotFoundError
from obatchd.jobs.model import Intent, JobState
from obatchd.jobs.store import Store
from obatchd.naming import JobFilter
from obatchd.settings.job import parse_job_settings

JOB = "20261128-101112-abcd"


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with desk(monkeypatch, tmp_path) as made:
        yield made


def accepted(store: Store, job: str, name: str = "other.jsonl", owner: int = 1000, **columns: Any) -> None:
    store.state.accept([Intent(job, name.encode(), owner, 1, 1, 9, "file", 0.0)])
    [row] = store.state.find([job])
    store.state.update(row.key, **{"paused": 0, **columns})


@pytest.mark.parametrize(
    "typed",
    [
        JOB, "20261128-10", "202611", "2026-11-28", "2026-11-28 10:11", "2026-11-28T10:11:12Z", "2026-11", "abcd",
        "12-abcd", "notes.csv", "notes", "study 1", f"notes.{JOB}", f"/var/spool/obatch/outbox/notes.{JOB}/",
        "~/data/notes.csv",
    ],
)  # fmt: skip
def test_a_job_is_found_by_whatever_people_call_it(tmp_path: Path, typed: str) -> None:
    store = Store(tmp_path, in_force())
    accepted(store, JOB, "notes.csv", job_label="study 1")
    accepted(store, "20251128-101112-zzzz", "other.csv")
    _, found = store.state.named(typed)
    assert [row.job for row in found] == [JOB]
    assert store.state.named(typed, owner=1001) == ("", [])
    store.close()


def test_no_name_and_no_chain_of_retries_is_looked_for_in_whole_rows_of_all_jobs(tmp_path: Path) -> None:
    """The main loop waits for these looks, and the index outlives jobs."""
    store = Store(tmp_path, in_force())
    accepted(store, JOB)
    [row] = store.state.find([JOB])
    asked, reader = list[str](), store.state._reader
    assert reader is not None
    reader.set_trace_callback(asked.append)
    assert store.state.retries(row) == [] and store.state.named("nothing", 1000) == ("", [])
    reader.set_trace_callback(None)
    plans = [step for query in asked for *_, step in reader.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert len(asked) == 6
    assert [step for step in plans if step.startswith("SCAN jobs") and "COVERING" not in step] == []
    assert [step for step in plans if "jobs_by_owner" in step] == []
    store.close()


@pytest.mark.parametrize(
    "typed", ["efgh", "20261127", "note", "notes.tsv", "study", "%", "_bcd", "\ud800", "20261128-101112-abce"]
)
def test_what_fits_no_job_finds_none(tmp_path: Path, typed: str) -> None:
    store = Store(tmp_path, in_force())
    accepted(store, JOB, "notes.csv", job_label="study 1")
    assert store.state.named(typed) == ("", [])
    store.close()


def test_a_label_goes_before_a_name_and_a_name_before_a_part_of_an_id(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    accepted(store, "20261128-101112-aaaa", "b.jsonl")
    accepted(store, "20261128-101112-aaab", "b.csv")
    accepted(store, "20261128-101112-aaac", job_label="b.csv")
    assert [row.job for row in store.state.named("b", limit=9)[1]] == ["20261128-101112-aaab", "20261128-101112-aaaa"]
    assert [row.job for row in store.state.named("b.csv", limit=9)[1]] == ["20261128-101112-aaac"]
    store.close()


@pytest.mark.parametrize("typed", ["b", "b.csv", "study", "2026-11"])
def test_where_more_jobs_fit_than_are_told_those_that_were_refused_are_left_out(tmp_path: Path, typed: str) -> None:
    store = Store(tmp_path, in_force())
    accepted(store, "20261101-101112-aaaa", "b.csv", job_label="study")
    for number in range(4):
        accepted(store, f"2026112{number}-101112-aaab", "b.csv", job_label="study", state=JobState.REFUSED)
    asked, reader = list[str](), store.state._reader
    assert reader is not None
    reader.set_trace_callback(asked.append)
    told = [row.job for row in store.state.named(typed, limit=2)[1]]
    reader.set_trace_callback(None)
    assert told == ["20261123-101112-aaab", "20261101-101112-aaaa"]
    # An order of more than the id would have to be made of all jobs that fit, which takes 0.1 s where they are 100,000.
    assert all(query.partition("ORDER BY ")[2].startswith("job DESC LIMIT") for query in asked)
    store.close()


async def test_where_several_jobs_fit_each_is_told_and_none_of_other_owners(rig: Desk) -> None:
    jobs = rig.operations.jobs
    first, second = await rig.take("a", label="study"), await rig.take("b", label="study", name="b.jsonl")
    other = await rig.take("c", label="study", owner=1001)
    for command in (jobs.cancel, jobs.retry, jobs.remove, jobs.pause, jobs.resume):
        with pytest.raises(ControlError, match="study is the label of several jobs; name one by its id:\n") as told:
            await command(ALICE, "study")
        assert told.value.code == "ambiguous"
        assert f"\n  {first.row.job}  drop.jsonl  running" in told.value.message
        when = datetime.fromtimestamp(second.row.accepted_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
        assert f"\n  {second.row.job}  b.jsonl  running  small  study  {when}" in told.value.message
        assert other.row.job not in told.value.message
    assert jobs.one(BOB, "study").job == other.row.job
    with pytest.raises(NotFoundError):
        jobs.one(BOB, first.row.job[-4:])
    assert jobs.one(ALICE, first.row.job[-4:]).label == "study"


async def test_of_very_many_jobs_that_fit_ten_are_told(rig: Desk) -> None:
    for number in range(10):
        await rig.take("a", label="study", name=f"{number}.jsonl")
    told = _told(rig)
    assert told.count("  running") == 10 and "and more" not in told
    await rig.take("a", label="study", name="last.jsonl")
    told = _told(rig)
    assert told.count("  running") == 10 and told.endswith("\n  and more: obatchctl jobs lists them")


def _told(rig: Desk) -> str:
    with pytest.raises(ControlError) as told:
        rig.operations.jobs.one(ALICE, "study")
    return told.value.message


async def test_a_retry_has_the_label_of_its_job_and_stands_behind_it(rig: Desk) -> None:
    live = await rig.take("a", label="study")
    await rig.answer(live, fault=NO)
    await rig.published(live)
    again = await rig.operations.jobs.retry(ALICE, "study")
    assert (again.label, again.retry_of) == ("study", live.row.job)
    assert rig.operations.jobs.one(ALICE, "study").job == live.row.job
    assert rig.operations.jobs.one(ALICE, "drop").job == live.row.job  # and not drop.retry.jsonl


async def test_refused_drops_do_not_compete_for_the_name_of_a_job_that_has_answers(rig: Desk) -> None:
    jobs = rig.operations.jobs
    done = await rig.run("a", name="patients.jsonl")
    for number in range(12):
        accepted(rig.work.store, f"2026112{number % 10}-{number:06d}-zzzz", "patients.jsonl", state=JobState.REFUSED)
    assert jobs.one(ALICE, "patients.jsonl").job == done.job
    assert (await jobs.remove(ALICE, "patients")).removed == done.job
    with pytest.raises(ControlError, match="patients is the name of several jobs"):
        jobs.one(ALICE, "patients")


async def test_lists_are_chosen_by_label_and_time(rig: Desk) -> None:
    jobs, began_s = rig.operations.jobs, time.time()
    done, open_job = await rig.run("a", label="x"), await rig.take("b", label="y")

    def found(**only: Any) -> list[str]:
        return [job.job for job in jobs.all(ALICE, None, 9, only=JobFilter(**only))]

    assert found(label="x") == [done.job] and found(label="z") == []
    assert found(accepted_since_s=began_s - 60) == [open_job.row.job, done.job]
    assert found(accepted_since_s=time.time() + 60) == []
    assert found(ended_before_s=time.time() + 60) == [done.job] and found(ended_before_s=began_s - 60) == []


async def test_a_label_is_kept_with_the_job_in_its_documents_and_when_the_index_is_lost(
    rig: Desk, tmp_path: Path
) -> None:
    document = await rig.operations.jobs.submit(handed(tmp_path, b'{"prompt": "a"}\n', label="study"))
    assert document.label == "study"
    [live] = rig.work.jobs.values()
    await rig.answer(live)
    assert (await rig.published(live))["label"] == "study"
    assert json.loads((live.outbox / "status.json").read_bytes())["label"] == "study"


async def test_labels_come_back_when_the_index_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(monkeypatch, tmp_path) as rig:
        await rig.run("a", label="done")
        await rig.take("b", label="open")
    for path in (tmp_path / "spool" / "work").glob("state.db*"):
        path.unlink()
    async with desk(monkeypatch, tmp_path) as rig:
        rows = rig.work.store.state.list_jobs(list(JobState))
        assert sorted(str(row.job_label) for row in rows) == ["done", "open"]


def test_a_label_can_be_typed() -> None:
    assert parse_job_settings({"label": " study 1 "}, "job.toml")[0].label == "study 1"
    for label in ("", "  ", "a\nb", "a\x1b[31m", "x" * 101, 3):
        with pytest.raises(ConfigError, match=r"job\.toml: label: must"):
            parse_job_settings({"label": label}, "job.toml")


def test_jobs_of_the_version_before_have_no_label_and_go_on(tmp_path: Path) -> None:
    store = Store(tmp_path, in_force())
    for number, state in enumerate(JobState):
        accepted(store, f"20260101-00000{number}-abcd", state=state)
    store.close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.executescript("DROP INDEX jobs_by_label; ALTER TABLE jobs DROP COLUMN job_label")
        connection.executescript(WITHOUT_VERSION_6)
        connection.executescript("DROP TABLE usage; PRAGMA user_version = 3")
    store = Store(tmp_path, in_force())
    rows = store.state.list_jobs(list(JobState))
    assert [(row.state, row.job_label, row.frozen.model) for row in rows] == [(state, None, "") for state in JobState]
    accepted(store, JOB, job_label="new")
    assert store.state.named("new")[1][0].job == JOB
    store.close()


async def test_many_jobs_that_are_over_are_erased_together(rig: Desk) -> None:
    done, open_job = await rig.run("a"), await rig.take("b")
    other = await rig.run("c", owner=1001)
    ids = [done.job, open_job.row.job, other.job, "19990101-000000-aaaa"]
    nobody = "there is no such job"
    kept = {open_job.row.job: "it is not over", other.job: nobody, ids[-1]: nobody}
    assert await rig.operations.jobs.remove_all(ALICE, [done.job, *ids]) == RemovedJobs([done.job], kept)
    assert not rig.work.outbox_of(done).exists() and rig.work.outbox_of(other).exists()
    assert await rig.operations.jobs.remove_all(ADMIN, [other.job]) == RemovedJobs([other.job], {})


# The command line.


# The fields of a job's document that these commands only show.
_REST: dict[str, Any] = {
    **dict.fromkeys(("owner", "failed", "cancelled", "expired", "in_flight"), 0), "succeeded": 3, "indexed": 3,
    **dict.fromkeys(("model", "retry_of", "sample_of", "requests_per_s", "tokens_per_s", "eta_s", "position")),
    **dict.fromkeys(("accepted_at", "expected_start_at", "expires_at", "refused_to")), "paused": False,
    "priority": "normal",
}  # fmt: skip


class Daemon:
    """A client whose daemon knows a few jobs, and remembers what it erased."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.jobs = [
            {
                "job": f"2026112{n}-101112-abc{n}", "name": name, "notes": [],
                "state": "done", "requests": 3, **_REST,
                "finished_at": "2026-11-28T10:00:00Z", "outbox": f"/outbox/{n}",
            }
            for n, name in enumerate(names)
        ]  # fmt: skip
        self.asked: list[dict[str, Any]] = []
        self.erased: list[str] = []
        self.commanded: list[tuple[str, ...]] = []
        daemon = self

        def get(client: ControlClient, path: str, *names: str, **query: Any) -> dict[str, Any]:
            if names:
                return next(job for job in daemon.jobs if names[0] in job["job"])
            daemon.asked.append(query)
            listed = [job for job in daemon.jobs if query.get("state") in (None, job["state"])]
            return {"jobs": listed[: query.get("limit", 100)]}

        def delete(client: ControlClient, path: str, *names: str) -> dict[str, Any]:
            daemon.erased.append(names[0])
            return {"removed": names[0]}

        def remove(client: ControlClient, ids: list[str]) -> dict[str, Any]:
            daemon.erased += ids[:-1]
            return {"removed": ids[:-1], "kept": {ids[-1]: "the disk refuses"}}

        def post(client: ControlClient, path: str, *names: str, **_: Any) -> dict[str, Any]:
            daemon.commanded.append((path, *names))
            return {"job": names[0] if names else "", "outbox": "/outbox", "retry_of": names[0] if names else ""}

        for name, method in (("get", get), ("delete", delete), ("remove", remove), ("post", post)):
            monkeypatch.setattr(ControlClient, name, method)


def run(*arguments: str, typed: str | None = None, monkeypatch: pytest.MonkeyPatch | None = None) -> Any:
    """``obatchctl`` without a terminal, or with one at which somebody types."""
    if typed is not None:
        assert monkeypatch is not None
        real = CliRunner.isolation

        def isolation(self: CliRunner, *given: Any, **named: Any) -> Any:
            context = real(self, *given, **named)

            class Entered:
                def __enter__(self) -> Any:
                    entered = context.__enter__()
                    sys.stdin.isatty = lambda: True  # type: ignore[method-assign]
                    return entered

                def __exit__(self, *error: object) -> Any:
                    return context.__exit__(*error)  # type: ignore[arg-type]

            return Entered()

        monkeypatch.setattr(CliRunner, "isolation", isolation)
    return CliRunner().invoke(main, arguments, input=typed)


def test_whole_ids_are_erased_without_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch, "a.csv", "b.csv")
    ids = [job["job"] for job in daemon.jobs]
    result = run("rm", *ids)
    assert (result.exit_code, daemon.erased) == (0, ids)
    assert result.stdout == "".join(f"{line}\n" for line in (*(f"{job} erased" for job in ids), SUMS_STAY))


@pytest.mark.parametrize("as_json", [False, True])
def test_one_job_that_stays_hides_nothing_of_what_was_erased_before_it(
    monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    daemon = Daemon(monkeypatch, "a.csv", "b.csv", "c.csv")
    ids = [job["job"] for job in daemon.jobs]

    def delete(client: ControlClient, path: str, *names: str) -> dict[str, Any]:
        if names[0] == ids[1]:
            raise ControlError(f"job {ids[1]} is not over", code="job_running")
        daemon.erased.append(names[0])
        return {"removed": names[0]}

    monkeypatch.setattr(ControlClient, "delete", delete)
    result = run("rm", *ids, *["--json"] * as_json)
    assert (result.exit_code, daemon.erased) == (1, [ids[0], ids[2]])
    assert f"{ids[1]} was not erased: job {ids[1]} is not over\n" in result.stderr
    if as_json:
        told = json.loads(result.stdout)
        assert (told["removed"], [*told["kept"]]) == (daemon.erased, [ids[1]])
    else:
        assert result.stdout.splitlines() == [f"{ids[0]} erased", f"{ids[2]} erased", SUMS_STAY]
    alone = run("rm", ids[1], "--json")
    assert (alone.exit_code, json.loads(alone.stdout)["error"]["code"]) == (1, "job_running")


def test_a_part_of_an_id_is_not_erased_where_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch, "a.csv", "b.csv")
    for given in (["abc1"], ["--last"], ["--older-than", "30d"], ["abc1", daemon.jobs[0]["job"]]):
        result = run("rm", *given)
        assert (result.exit_code, daemon.erased) == (2, [])
        assert "this would erase 2026112" in result.stderr and "give --yes, or whole ids" in result.stderr
    result = run("rm", "abc1", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (2, "usage")
    assert run("rm", "abc1", "--yes").exit_code == 0 and daemon.erased == [daemon.jobs[1]["job"]]


def test_nobody_can_be_asked_where_standard_input_is_closed() -> None:
    """As in ``obatchctl rm study <&-``, and under some schedulers."""
    code = (
        "from obatchd.cli.obatchctl import main; from obatchd.client.control import ControlClient; "
        "ControlClient.get = lambda *_, **__: {'job': 'whole id', 'state': 'done'}; main(['rm', 'study'])"
    )
    called = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", code]
    done = subprocess.run(called, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "this would erase whole id; nobody can be asked here" in done.stderr


@pytest.mark.parametrize(("typed", "code", "count"), [("y\n", 0, 1), ("n\n", 1, 0), ("", 1, 0), ("\n", 1, 0)])
def test_somebody_at_a_terminal_sees_what_would_go_and_is_asked(
    monkeypatch: pytest.MonkeyPatch, typed: str, code: int, count: int
) -> None:
    daemon = Daemon(monkeypatch, "a.csv", "b.csv")
    result = run("rm", "abc1", typed=typed, monkeypatch=monkeypatch)
    assert (result.exit_code, len(daemon.erased)) == (code, count), result.output
    assert "20261121-101112-abc1  b.csv" in result.stdout
    assert "Erase 1 job, with results and prompts? This cannot be undone. [y/N]" in result.stdout
    assert result.stderr == ("" if code == 0 else "Nothing was erased.\n")


def test_the_question_shows_states_as_lists_do(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch, "a.csv")
    daemon.jobs[0] |= {"succeeded": 0, "failed": 3}
    shown = run("rm", "abc0", typed="n\n", monkeypatch=monkeypatch).stdout
    assert " failed " in shown and " done " not in shown


def test_a_question_about_many_jobs_counts_them_and_shows_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch, *(f"{n}.csv" for n in range(10)))
    daemon.jobs = daemon.jobs * 3
    for place, job in enumerate(daemon.jobs):
        daemon.jobs[place] = job | {"job": f"{job['job']}{place}"}
    result = run("rm", "--older-than", "30d", typed="n\n", monkeypatch=monkeypatch)
    assert "… and 10 more\nErase 30 jobs" in result.stdout and daemon.erased == []


def test_who_has_more_jobs_than_a_list_holds_is_told_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    Daemon(monkeypatch, "a.csv", "b.csv")
    assert "One call erases" not in run("rm", "--label", "x", typed="n\n", monkeypatch=monkeypatch).stdout
    monkeypatch.setattr("obatchd.cli.commands.rm._MOST", 2)
    asked = run("rm", "--label", "x", typed="n\n", monkeypatch=monkeypatch).stdout
    assert "One call erases at most 10,000 jobs that are done and 10,000 that were refused." in asked
    assert json.loads(run("rm", "--label", "x", "--yes", "--json").stdout)["more"] is True


def test_old_jobs_are_ones_own_unless_all_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch, "a.csv", "b.csv")
    result = run("rm", "--older-than", "30d", "--yes")
    assert result.exit_code == 1 and "20261121-101112-abc1 was not erased: the disk refuses" in result.stderr
    assert daemon.erased == [daemon.jobs[0]["job"]]
    assert [query["owner"] for query in daemon.asked] == ["mine", "mine"]
    assert {query["state"] for query in daemon.asked} == {"done", "refused"}
    for query in daemon.asked:
        assert query["ended_before"] == pytest.approx(time.time() - 30 * 86400, abs=60)
    run("rm", "--label", "x", "--all", "--yes")
    assert (daemon.asked[-1]["owner"], daemon.asked[-1]["label"]) == ("all", "x")
    daemon.jobs = []
    result = run("rm", "--older-than", "30d")
    assert (result.exit_code, result.stdout) == (0, "There is no such job that is over; nothing was erased.\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rm"], "name a JOB, or give --last, --older-than or --label"),
        (["rm", "x", "--all"], "--all goes with --older-than or --label"),
        (["rm", "--older-than", "soon"], "soon is no length of time"),
        (["rm", "--older-than", "30"], "30 what? Write 30d for days, 30h for hours"),
        (["jobs", "--since", "7"], "7 what? Write 7d for days, 7h for hours"),
        (["job"], "Missing argument 'JOB'"),
        (["cancel", "x", "--last"], "give JOB or --last, not both"),
        (["pause", "x", "--last"], "give JOB or --last, not both"),
        (["results"], "give one of JOB, DIR and --last"),
        (["results", "x", "--last"], "give one of JOB, DIR and --last"),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_told(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    daemon = Daemon(monkeypatch, "a.csv")
    result = run(*arguments)
    assert result.exit_code == 2 and words in result.stderr
    assert daemon.erased == [] and daemon.commanded == []


def test_results_of_a_refused_drop_say_why_and_where_answers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch, "bad.csv", "worse.csv", "good.csv", "better.csv")
    for job in daemon.jobs[:2]:
        job |= {"state": "refused", "outbox": None, "refused_to": "/failed/bad", "notes": ["no column note"]}
    bad, good = daemon.jobs[0]["job"], daemon.jobs[2]["job"]
    told = f"job {bad} (bad.csv) was refused: no column note\n/failed/bad has it\n"
    result = run("results", "--last")
    assert (result.exit_code, result.stderr) == (1, f"{told}the one before:  obatchctl results {good}\n")
    assert run("results", bad).stderr == told


def test_the_end_of_the_latest_jobs_answers_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch, "good.csv")
    place = _answered(tmp_path / f"good.{JOB}", "x")
    daemon.jobs[0] |= {"job": JOB, "outbox": str(place)}
    (place / "status.json").write_text(json.dumps({"job": JOB, "name": "good.csv"}))
    assert f"good.csv, job {JOB}\n" in run("results", "--last").stderr
    assert "good.csv, job" not in run("results", str(place)).stderr


def test_results_of_the_latest_job_of_somebody_who_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Daemon(monkeypatch)
    assert run("results", "--last").stderr == "you have no job yet; obatchctl submit PATH makes one\n"


@pytest.mark.parametrize("command", ["cancel", "retry", "pause", "resume"])
def test_the_latest_job_is_ones_own_latest(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    daemon = Daemon(monkeypatch, "a.csv", "b.csv")
    assert run(command, "--last").exit_code == 0
    assert daemon.commanded == [("jobs", daemon.jobs[0]["job"], command)]
    assert daemon.asked == [{"owner": "mine", "limit": 1}]
    assert run("job", "--last").stdout.split()[:2] == ["job", daemon.jobs[0]["job"]]
    daemon.jobs = []
    result = run(command, "--last")
    assert result.exit_code == 1 and result.stderr == "you have no job yet; obatchctl submit PATH makes one\n"


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_command_names_the_job_that_it_found(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    Daemon(monkeypatch)
    found = lambda client, path, *names, **_: {"job": JOB} if names else {"paused": True}  # noqa: E731
    monkeypatch.setattr(ControlClient, "post", found)
    assert run(command, "notes").stdout == f"{JOB} {command}d.\n"
    assert run(command).stdout == f"All jobs {command}d.\n"


@pytest.mark.parametrize("place", [JOB, "20261128", "abcd", "notes.csv", "notes", "study", "--last"])
def test_results_are_found_in_the_same_way_without_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def down(client: ControlClient, *_: Any, **__: Any) -> Any:
        raise DaemonDownError("not running")

    monkeypatch.setattr(ControlClient, "get", down)
    for job, name, label in ((JOB, "notes.csv", "study"), ("20251128-101112-zzzz", "other.csv", None)):
        outbox = tmp_path / "outbox" / f"{name[:-4]}.{job}"
        outbox.mkdir(parents=True)
        (outbox / "status.json").write_text(json.dumps({"job": job, "name": name, "label": label}))
        record = {"id": "1", "line": 1, "outcome": "succeeded", "response": f"of {name}"}
        (outbox / "results.jsonl").write_text(json.dumps(record) + "\n")
    result = run("--spool", str(tmp_path), "results", place)
    assert result.exit_code == 0 and "of notes.csv" in result.stdout
    assert run("--spool", str(tmp_path), "results", "csv").exit_code == 3


@pytest.mark.parametrize("command", ["results", "compare"])
def test_the_dropped_file_beside_somebody_names_its_job_and_other_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    record = {"id": "1", "line": 1, "outcome": "succeeded", "response": "of the job"}
    (tmp_path / "out" / "results.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "notes.jsonl").write_text('{"id": "1", "prompt": "a"}\n')
    (tmp_path / "answers.jsonl").write_text('{"id": "1", "response": "of the file"}\n')

    def get(client: ControlClient, path: str, *names: str, **_: Any) -> dict[str, Any]:
        if names != ("notes.jsonl",):
            raise NotFoundError("no such job")
        return {"outbox": str(tmp_path / "out"), "retries": []}

    def looked(*places: str) -> Any:
        result = run(command, *places, *(["--json", "-o", "o.csv"]))
        assert result.exit_code == 0, result.output
        return (tmp_path / "o.csv").read_text()

    monkeypatch.setattr(ControlClient, "get", get)
    places = ["notes.jsonl", "answers.jsonl", "./answers.jsonl"][: 1 + (command == "compare")]
    assert "of the job" in looked(*places)
    assert "of the file" in looked(*["answers.jsonl", "./answers.jsonl"][: 1 + (command == "compare")])

    def down(client: ControlClient, *_: Any, **__: Any) -> Any:
        raise DaemonDownError("not running")

    monkeypatch.setattr(ControlClient, "get", down)
    assert "of the file" in looked(*["answers.jsonl", "out"][: 1 + (command == "compare")])


def _answered(directory: Path, said: str) -> Path:
    """A folder with one answer, which is no outbox."""
    directory.mkdir(parents=True)
    record = {"id": "1", "line": 1, "outcome": "succeeded", "response": said}
    (directory / "results.jsonl").write_text(json.dumps(record) + "\n")
    return directory


def test_the_dropped_folder_beside_somebody_names_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("my own letter")
    _answered(tmp_path / "answers", "of the folder")
    daemon = Daemon(monkeypatch, "letters")
    daemon.jobs[0]["outbox"] = str(_answered(tmp_path / "out", "of the job"))

    def get(client: ControlClient, path: str, *names: str, **_: Any) -> dict[str, Any]:
        if names != ("letters",):
            raise NotFoundError("no such job")
        return daemon.jobs[0]

    monkeypatch.setattr(ControlClient, "get", get)
    result = run("results", "letters")
    assert "of the job" in result.stdout and "my own letter" not in result.stdout
    assert f"letters is a job and a folder here; this is the job {daemon.jobs[0]['job']}. The folder: ./letters" in (
        result.stderr
    )
    assert "my own letter" in run("results", "./letters").stdout
    assert "of the folder" in run("results", "answers").stdout


@pytest.mark.parametrize("command", ["results", "compare"])
def test_a_label_may_look_like_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    _answered(tmp_path / "study" / "2", "of the folder")
    daemon = Daemon(monkeypatch, "a.csv")
    daemon.jobs[0] |= {"outbox": str(_answered(tmp_path / "out", "of the job")), "label": "study/3"}

    def get(client: ControlClient, path: str, *names: str, **query: Any) -> dict[str, Any]:
        assert names in ((), ("study/3",))
        return daemon.jobs[0] if names else {"jobs": daemon.jobs if query["label"] == "study/3" else []}

    monkeypatch.setattr(ControlClient, "get", get)

    def looked(place: str) -> str:
        result = run(command, *[place] * (1 + (command == "compare")), "--json", "-o", "o.csv")
        assert result.exit_code == 0, result.output
        return (tmp_path / "o.csv").read_text()

    assert "of the job" in looked("study/3")
    assert "of the folder" in looked("study/2")


def test_a_list_of_jobs_passes_on_what_it_is_chosen_by(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(monkeypatch)
    assert run("jobs", "--label", "x", "--since", "2h", "--mine").exit_code == 0
    [query] = daemon.asked
    assert (query["label"], query["owner"], query["limit"]) == ("x", "mine", 100)
    assert query["since"] == pytest.approx(time.time() - 7200, abs=60)
    for given in ("2026-11-01", "2026-11-01T00:00"):
        assert run("jobs", "--since", given).exit_code == 0
        assert daemon.asked[-1]["since"] == datetime(2026, 11, 1).timestamp()
    wrong = run("jobs", "--since", "soon")
    assert wrong.exit_code == 2 and "soon is neither a length of time such as 3d nor a date such as" in wrong.stderr
