"""What people and the page look at again and again, of a whole daemon: on the command line and over HTTP."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon_support import Daemon, Document, prompts, wait_for
from history_support import make_history
from programs_support import Programs, for_all_tests, over_http
from test_daemon_burnin import CONFIG, SIMULATOR, loading, started

Make = Callable[..., Daemon]
BELOW = "/obatchd/v1"
# One in ten fails for good; the others take a while, in no order.
FAILING = {
    "service_s": {"kind": "uniform", "low": 0.02, "high": 0.4},
    "faults": [{"kind": "status", "status": 400, "message": "no such thing", "marker": "-7"}],
}


def failures(d: Daemon, job: str) -> Document:
    shown = d.control("job", job, "--failures", "--json")
    assert shown.returncode == 0, shown.stderr
    found: Document = json.loads(shown.stdout)
    return found


def test_causes_and_answers_of_a_running_job_are_the_same_after_a_kill(make_daemon: Make, tmp_path: Path) -> None:
    d = make_daemon(simulator=FAILING).start().ready()
    asked = [{"id": f"q-{n}", "prompt": f"q-{n}"} for n in range(400)]
    d.drop("job.jsonl", [*asked, {"nothing": "here"}])
    job = d.job("job.jsonl").status["job"]
    wait_for(lambda: d.client.get("jobs", job)["succeeded"] >= 20, 20, "some are answered")
    d.client.post("jobs", job, "pause")
    wait_for(lambda: not d.client.get("jobs", job)["in_flight"], 20, "nothing is in flight")
    before = failures(d, job)
    assert before["state"] == "running" and 0 < before["failed"] < 41
    assert [cause["code"] for cause in before["failures"]].count("bad_request") == 1
    told = d.client.get("jobs", job)["details"]["failures"]
    target = tmp_path / "followed.jsonl"
    command = [Path(sys.executable).with_name("obatchctl"), "--spool", d.spool, "results", job]
    command += ["--follow", "--format", "jsonl"]
    with (
        target.open("wb") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True) as follower,
        contextlib.ExitStack() as at_end,
    ):
        at_end.callback(follower.kill)
        so_far = before["succeeded"] + before["failed"]
        wait_for(lambda: target.read_bytes().count(b"\n") == so_far, 20, "what is answered by now is printed")
        d.kill()
        d.start().ready()
        assert failures(d, job) == before
        assert d.client.get("jobs", job)["details"]["failures"] == told
        d.client.post("jobs", job, "resume")
        _, complaints = follower.communicate(timeout=60)
    assert follower.returncode == 0, complaints
    records = list(map(json.loads, target.read_bytes().splitlines()))
    assert Counter(record["line"] for record in records) == Counter(range(1, 402)), "each answer comes once"
    # 7, 17, 27 … and the seventies: those whose prompt has "-7".
    bad = [n for n in range(400) if "-7" in f"q-{n}"]
    assert f"401 requests = {400 - len(bad)} answered + {len(bad) + 1} failed" in complaints
    over = failures(d, job)
    assert [(cause["code"], cause["requests"], cause["line"]) for cause in over["failures"]] == [
        ("bad_request", len(bad), 8), ("missing_prompt", 1, 401)
    ]  # fmt: skip
    assert {code: failure["requests"] for code, failure in d.job("job.jsonl").summary["failures"].items()} == {
        cause["code"]: cause["requests"] for cause in over["failures"]
    }
    page = d.control("job", job, "--failures").stdout
    assert "the first in line 8" in page and "no such thing" in page and "→" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "csv"], "--follow prints text or jsonl"),
        (["--output", "x.csv"], "--output does not go with --follow"),
        (["--json"], "--json does not go with --follow"),
        (["--data-only"], "--data-only goes with --format jsonl"),
    ],
)
def test_what_does_not_go_with_following_is_refused(plain: Daemon, arguments: list[str], words: str) -> None:
    answer = plain.control("results", "nothing", "--follow", *arguments)
    assert answer.returncode == 2 and words in answer.stderr + answer.stdout


def test_following_a_job_that_is_over_prints_it(plain: Daemon) -> None:
    job = plain.drop("over.jsonl", prompts(3, "over"))
    plain.done("over.jsonl")
    answer = plain.control("results", job, "--follow")
    assert answer.returncode == 0 and answer.stdout.count("Prompt: ") == 3
    assert "3 requests = 3 answered + 0 failed" in answer.stderr
    assert plain.control("results", "nobody", "--follow").returncode == 1


def test_a_long_list_of_jobs_is_seen_in_parts(plain: Daemon) -> None:
    for number in range(5):
        plain.drop(f"part{number}.jsonl", prompts(1, f"part{number}"))
    for number in range(5):
        plain.done(f"part{number}.jsonl")
    whole = [job["job"] for job in plain.client.get("jobs")["jobs"]]
    found, after = list[str](), None
    while True:
        part = plain.client.get("jobs", limit=2, after=after)
        found += [job["job"] for job in part["jobs"]]
        if (after := part["next"]) is None:
            break
    assert found == whole
    shown = plain.control("jobs", "--limit", "2").stdout
    assert shown.splitlines()[-1] == f"older jobs:  obatchctl jobs --limit 2 --after {whole[1]}"
    assert whole[2] in plain.control("jobs", "--after", whole[1]).stdout


def test_yesterday_is_drawn_and_told_to_programs(make_daemon: Make) -> None:
    d = make_daemon({"gpus": {"use": "simulated:2"}}).start().ready()
    d.stop()
    for path in (d.spool / "work").glob("history.db*"):
        path.unlink()
    make_history(d.spool / "work" / "history.db", 2, time.time())
    d.start().ready()
    lines = d.control("gpus", "history").stdout.splitlines()
    assert "a bar is" in lines[0] and lines[2].split() == ["GPU", "UTILISATION", "MEAN", "MOST", "LATEST"]
    assert any(line.startswith("tokens/s") and "█" in line for line in lines)
    assert any("GPU 1" in line and "XID 79" in line for line in lines)
    one = d.control("gpus", "history", "1", "--span", "48h").stdout
    assert all(word in one for word in ("temperature", "power", "memory", "slowed down", "Q quarantine"))
    months = json.loads(d.control("gpus", "history", "--span", "90d", "--json").stdout)
    assert months["step_s"] == 10_800 and [gpu["index"] for gpu in months["gpus"]] == [0, 1]
    lengths = {len(values) for gpu in months["gpus"] for values in gpu.values() if isinstance(values, list)}
    assert lengths == {len(months["at_s"])} == {len(months["work"]["host"]["queued"])}
    assert [event["kind"] for event in months["events"]] == ["finding", "xid", "quarantine", "release"]
    for wrong in (["--span", "91d", "--value", "clock"], ["--span", "400d"], ["9"]):
        answer = d.control("gpus", "history", *wrong)
        assert (answer.returncode == 0) is (wrong[1:2] == ["91d"]), answer.stderr
    # The work of now is added to it.
    d.drop("now.jsonl", prompts(40))
    d.done("now.jsonl")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with for_all_tests(tmp_path_factory.mktemp("reads"), simulator={"answer": {"tokens": 2}}) as found:
        yield found


def test_one_call_has_all_at_a_glance_and_says_when_nothing_has_changed(programs: Programs) -> None:
    programs.d.drop("glance.jsonl", prompts(3, "glance"))
    _over(programs, "glance.jsonl")
    first = programs.call("GET", f"{BELOW}/page?fresh=1")
    document = first.document
    assert first.status == 200 and first.headers["cache-control"] == "no-cache"
    assert document["jobs"][0]["name"] == "glance.jsonl" and document["jobs"][0]["state"] == "done"
    assert document["status"]["jobs"] == [] and len(document["gpus"]["gpus"]) == len(document["status"]["servers"])
    tag = first.headers["etag"]
    assert tag == f'"{document["revision"]}"' and document["administrator"] is False
    # Readings change, so it may take a few looks until two are the same.
    wait_for(lambda: _unchanged(programs), 20, "nothing changes on an idle host")
    assert programs.call("GET", f"{BELOW}/page?fresh=1", if_none_match='"other"').status == 200
    assert programs.call("GET", f"{BELOW}/page?owner=all").status == 403
    assert programs.call("GET", f"{BELOW}/page?jobs=0").status == 400


def _over(programs: Programs, name: str) -> str:
    """The id of a job, once it is done and the index knows it, which is a moment after its summary is there."""
    job = programs.d.done(name).id
    wait_for(lambda: programs.d.client.get(f"jobs/{job}")["state"] == "done", what="the index knows it, too")
    return job


def _unchanged(programs: Programs) -> bool:
    tag = programs.call("GET", f"{BELOW}/page").headers["etag"]
    again = programs.call("GET", f"{BELOW}/page", if_none_match=tag)
    return (again.status, again.body) == (304, b"")


def test_every_look_is_there_over_http_as_on_the_control_socket(programs: Programs) -> None:
    d = programs.d
    d.drop("looks.jsonl", [*prompts(2, "looks"), {"nothing": 1}])
    job = _over(programs, "looks.jsonl")
    for path in ("gpus", "gpus/0", f"jobs/{job}/failures", f"jobs/{job}/results?limit=2&after=1", "jobs?limit=1"):
        found = programs.call("GET", f"{BELOW}/{path}")
        assert found.status == 200, path
        if not path.startswith("gpus"):  # whose readings change
            name, _, query = path.partition("?")
            asked = dict(pair.split("=") for pair in query.split("&")) if query else {}
            assert found.document == d.client.get(name, **asked)
    for path in ("gpu-events", "gpu-history?span=1h&points=20", "work-history?span=1h"):
        assert programs.call("GET", f"{BELOW}/{path}").document["schema"] == 1
    assert programs.call("GET", f"{BELOW}/jobs/{job}/results?outcome=good").status == 400
    assert programs.call("GET", f"{BELOW}/jobs/{job}/results?after=-1").status == 400
    for wrong in ("span=never", "span=200d", "points=1000000", "since=9999999999"):
        assert programs.call("GET", f"{BELOW}/gpu-history?{wrong}").status == 400, wrong
    assert programs.call("DELETE", f"{BELOW}/jobs/{job}").document["removed"] == job
    assert programs.call("GET", f"{BELOW}/jobs/{job}/failures").status == 404
    only_metrics = programs.make_key("--scope", "metrics")
    for path in ("page", "gpus", "gpu-history", "work-history", "jobs/x/results", "burnin/series"):
        refused = programs.call("GET", f"{BELOW}/{path}", Authorization=f"Bearer {only_metrics}")
        assert (refused.status, refused.error["code"]) == (403, "insufficient_scope"), path
        assert programs.call("GET", f"{BELOW}/{path}", Authorization="").status == 401, path


def test_a_burn_in_is_seen_while_it_runs_by_administrators_alone(make_daemon: Make) -> None:
    programs = over_http(make_daemon, CONFIG, simulator=SIMULATOR)
    d = programs.d.start().ready()
    over_all = programs.make_key("--admin")

    def look(path: str, key: str) -> tuple[int, Document]:
        found = programs.call("GET", f"{BELOW}/burnin/{path}", Authorization=f"Bearer {key}")
        return found.status, found.document

    assert look("series", over_all)[0] == 404
    run = started(d, "--gpus", "0,1", "--duration", "1h")
    wait_for(lambda: loading(d), 20, "the load has begun")
    assert {look(path, programs.key)[0] for path in ("series", "status", f"reports/{run}")} == {403}
    series = wait_for(lambda: found if (found := look("series", over_all)[1])["at_s"] else None, 30, "a bucket is full")
    assert series is not None and (series["run"], series["active"], series["state"]) == (run, True, "loading")
    assert [gpu["index"] for gpu in series["gpus"]] == [0, 1]
    columns = [values for gpu in series["gpus"] for values in gpu.values() if isinstance(values, list)]
    filled = [values for values in columns if values]  # there is no load yet but the model's
    assert {len(values) for values in filled} == {len(series["at_s"])} and len(filled) == 20
    assert series["gpus"][0]["power_w"][-1] > 0
    assert d.client.post("burnin/stop")["run"] == run
    status, whole = look(f"reports/{run}", over_all)
    status_of_series, again = look(f"series?run={run[:8]}&points=1", over_all)
    assert (status, status_of_series) == (200, 200)
    assert len(again["at_s"]) == 1 and not again["active"] and again["state"] == "stopped"
    hottest = max(value for value in whole["gpus"][0]["series"]["temp_c"] if value is not None)
    assert again["gpus"][0]["temp_c"] == [hottest]
