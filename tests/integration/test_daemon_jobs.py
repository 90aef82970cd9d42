"""Whole jobs through the running daemon: formats, settings, models, owners, summaries."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_support import (
    Daemon,
    ask_server,
    digest,
    json_array_gz,
    jsonl,
    prompts,
    wait_for,
)
from port_support import free_ports

pytestmark = pytest.mark.over_channel

Start = Callable[..., Daemon]
SLOW = {"service_s": {"kind": "fixed", "value": 0.15}}


@pytest.mark.near
def test_three_drops_together_keep_both_servers_busy(daemon: Start) -> None:
    d = daemon(simulator=SLOW)
    original = [{"role": "user", "content": f"extract number {i} from this text"} for i in range(60)]
    folder = {f"case{i:02}.json": json.dumps({"prompt": f"case {i}", "patient": i}).encode() for i in range(20)}
    array = prompts(30, "array")
    packed = json_array_gz(array)
    d.drop_all({"lines.jsonl": jsonl(original), "cases": folder, "array.json.gz": packed})
    lines, cases, packed_job = (d.done(name) for name in ("lines.jsonl", "cases", "array.json.gz"))

    summary = lines.check({f"{i + 1:07d}": line["content"] for i, line in enumerate(original)})
    assert summary["drop"] == {
        "sha256": hashlib.sha256(jsonl(original)).hexdigest(),
        "size_bytes": len(jsonl(original)),
    }
    assert cases.check({f"case{i:02}": f"case {i}" for i in range(20)})["requests"] == 20
    assert {r["id"]: r["input"] for r in cases.results}["case07"] == {"patient": 7}
    assert packed_job.check(array)["drop"]["sha256"] == hashlib.sha256(packed).hexdigest()

    seen = d.seen()
    assert sum(s["served"] for s in seen) == 110
    assert all(s["served"] > 20 for s in seen)
    assert [s["max_in_flight"] for s in seen] == [4, 4]
    assert [s["max_queued"] for s in seen] == [0, 0]
    assert [len(s["loads"]) for s in seen] == [1, 1]
    assert summary["speedup"] > 1.5
    assert set(summary["servers"]) == {"gpu0", "gpu1"}
    assert {use["ollama_version"] for use in summary["servers"].values()} == {"0.24.0-simulated"}
    assert summary["models"]["tiny"]["quantization"] == "F16"
    assert len(summary["models"]["tiny"]["digest"]) >= 64
    record = lines.results[0]
    assert json.loads((lines.directory / "responses" / "0000001.json").read_bytes()) == record
    assert (lines.directory / "responses" / "0000001.txt").read_text().startswith(digest(record["prompt"]))
    assert {"model", "server", "gpu", "attempts", "started_at", "finished_at", "duration_s", "tokens_per_s"} <= set(
        record
    )
    assert record["gpu"].startswith("GPU-")


@pytest.mark.near
def test_original_configuration_uses_the_servers_it_names(make_daemon: Start, tmp_path: Path) -> None:
    first = free_ports(2)
    theirs = make_daemon({"servers": {"base_port": first, "slots": 4}}, simulator=SLOW).start().ready()
    d = make_daemon(
        'model = "tiny"\nsystem_message = "Answer in one word."\n\n'
        f'[ollama_instances]\n"127.0.0.1:{first}" = 0\n"127.0.0.1:{first + 1}" = 1\n'
    )
    d.start().ready()
    asked = [{"role": "user", "content": f"line {i}"} for i in range(60)]
    d.drop("questions.jsonl", asked)
    d.done("questions.jsonl").check({f"{i + 1:07d}": line["content"] for i, line in enumerate(asked)})
    assert [server["kind"] for server in d.servers()] == ["remote", "remote"]
    assert d.servers_alive() == []
    seen = theirs.seen()
    assert sum(s["served"] for s in seen) == 60
    assert [s["max_in_flight"] for s in seen] == [4, 4]
    assert d.stop() == 0
    assert len(theirs.seen()) == 2  # nobody ends what is not theirs


def test_a_prompt_too_long_fails_and_fits_with_a_larger_context(plain: Daemon) -> None:
    d = plain
    words = "MARKER " + "word " * 9000
    long = {"id": "long", "prompt": words}
    d.drop("long.jsonl", [long, {**long, "id": "fits", "context_length": 12000}, {"id": "short", "prompt": "hello"}])
    job = d.done("long.jsonl")
    summary = job.check(failed=1)
    assert job.errors[0]["id"] == "long"
    assert job.codes() == {"context_exceeded": 1}
    assert "context_length" in summary["failures"]["context_exceeded"]["advice"]
    fits = next(r for r in job.results if r["id"] == "fits")
    assert fits["prompt_tokens"] > 9000
    sent = [r for r in d.received() if r["prompt"].startswith("MARKER") and r["num_ctx"] == 16384]
    assert len(sent) == 1
    assert sent[0]["prompt_tokens"] == fits["prompt_tokens"]


def test_two_models_take_turns_without_reloading_for_each_request(daemon: Start) -> None:
    d = daemon({"gpus": {"use": "simulated:1"}}, simulator={"service_s": {"kind": "fixed", "value": 0.02}})
    asked = [{**r, "model": ("tiny", "simulated")[i % 2]} for i, r in enumerate(prompts(60))]
    d.drop("two.jsonl", asked)
    job = d.done("two.jsonl")
    assert set(job.check(asked)["models"]) == {"tiny", "simulated"}
    assert all(r["model"] == asked[r["line"] - 1]["model"] for r in job.results)
    [seen] = d.seen()
    assert [load["model"].partition(":")[0] for load in seen["loads"]] in (["tiny", "simulated"], ["simulated", "tiny"])


@pytest.mark.root
def test_two_owners_share_one_server_fairly(daemon: Start) -> None:
    d = daemon({"gpus": {"use": "simulated:1"}}, simulator={"service_s": {"kind": "fixed", "value": 0.02}})
    d.client.post("pause")
    big, small = prompts(200, "big"), prompts(20, "small")
    d.drop("big.jsonl", big, owner=4001)
    d.job("big.jsonl")
    d.drop("small.jsonl", small, owner=4002)
    d.job("small.jsonl")
    d.client.post("resume")
    d.done("small.jsonl").check(small)
    d.done("big.jsonl").check(big)
    order = [r["prompt"].partition(":")[0] for r in d.received()]
    last = len(order) - order[::-1].index("small")
    assert last < 70, f"the small job was answered after {last} requests"
    assert [j["owner"] for j in d.client.get("jobs")["jobs"]] == [4002, 4001]
    assert len(d.seen()[0]["loads"]) == 1


@pytest.mark.root
def test_two_owners_with_two_models_on_one_server_both_get_their_turn(daemon: Start) -> None:
    d = daemon(
        {"gpus": {"use": "simulated:1"}, "dispatch": {"switch_after_s": 1}},
        simulator={"service_s": {"kind": "fixed", "value": 0.02}, "load_s": 0.05},
    )
    one, two = prompts(600, "one", model="tiny"), prompts(40, "two", model="simulated")
    d.drop("one.jsonl", one, owner=4001)
    d.job("one.jsonl")
    d.drop("two.jsonl", two, owner=4002)
    d.done("two.jsonl", 10).check(two)
    assert not (d.job("one.jsonl").directory / "summary.json").exists()  # it did not have to wait for the other owner
    d.done("one.jsonl").check(one)
    models = [load["model"].partition(":")[0] for load in d.seen()[0]["loads"]]
    assert models == ["tiny", "simulated", "tiny"]


def test_a_requests_own_settings_win_over_its_jobs_and_the_daemons(daemon: Start) -> None:
    d = daemon({"context_length": 4096, "options": {"seed": 1}, "system_message": "daemon", "max_response_tokens": 9})
    toml = b'model = "simulated"\ncontext_length = 8000\nmax_response_tokens = 7\nsystem_message = "job says more"\n'
    d.drop(
        "folder",
        {
            "job.toml": toml,
            "a.json": json.dumps({"prompt": "plain"}).encode(),
            "b.json": json.dumps(
                {"prompt": "own", "model": "tiny", "context_length": 20000, "max_response_tokens": 5}
            ).encode(),
        },
    )
    d.drop("plain.jsonl", [{"id": "x", "prompt": "daemon's own"}])
    job, plain = d.done("folder"), d.done("plain.jsonl")
    of_job, own = job.results
    [of_daemon] = plain.results
    assert [r["model"] for r in (own, of_job, of_daemon)] == ["tiny", "simulated", "tiny"]
    assert [r["response_tokens"] for r in (own, of_job, of_daemon)] == [5, 7, 9]
    assert [r["truncated"] for r in (own, of_job, of_daemon)] == [True, True, True]
    contexts = {r["digest"]: r["num_ctx"] for r in d.received()}
    asked = [digest(r["prompt"]).removeprefix("digest:") for r in (own, of_job, of_daemon)]
    assert [contexts[name] for name in asked] == [32768, 8192, 4096]
    message = b"job says more"
    assert job.summary["settings"]["system_message_sha256"] == hashlib.sha256(message).hexdigest()
    assert plain.summary["settings"]["system_message_sha256"] == hashlib.sha256(b"daemon").hexdigest()


def test_an_original_configuration_in_a_folder_counts_except_where_to_send(plain: Daemon) -> None:
    d = plain
    config = b'model = "simulated"\nsystem_message = "s"\n[ollama_instances]\n"198.51.100.7:11434" = 0\n'
    d.drop("folder", {"config.toml": config, "a.json": b'{"prompt": "hello"}'})
    job = d.done("folder")
    job.check({"a": "hello"})
    assert job.results[0]["model"] == "simulated"
    assert any("ollama_instances" in note for note in job.summary["notes"])
    assert len(d.servers()) == 2


def test_a_submission_that_is_refused_says_why_and_keeps_its_own_name(plain: Daemon, tmp_path: Path) -> None:
    d = plain
    (tmp_path / "target.json").write_text("[]")
    (tmp_path / "linked.json").symlink_to(tmp_path / "target.json")
    said = d.control("submit", tmp_path / "linked.json")
    assert said.returncode == 1
    assert said.stderr.endswith("was not accepted: linked.json holds no request\n")
    [job] = [job for job in d.client.get("jobs")["jobs"] if job["name"] == "linked.json"]
    assert (job["state"], job["notes"]) == ("refused", ["linked.json holds no request"])
    assert job["outbox"] is None
    assert "holds no request" in (Path(job["refused_to"]) / "linked.json.error.txt").read_text()
    said = d.control("results", job["job"])
    assert said.returncode == 1
    assert job["refused_to"] in said.stderr


def test_a_submission_says_of_what_is_refused_in_it_at_once(plain: Daemon, tmp_path: Path) -> None:
    d = plain
    (tmp_path / "twins.jsonl").write_bytes(jsonl([{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}]))
    said = d.control("submit", tmp_path / "twins.jsonl")
    assert said.returncode == 1
    [command] = re.findall(r"1 failed when it was read; see why:  obatchctl (job .* --failures)", said.stdout)
    assert "duplicate_id" in d.control(*command.split()).stdout


def test_submit_with_settings_waits_and_copies_the_results(plain: Daemon, tmp_path: Path) -> None:
    d = plain
    asked = prompts(12, "sub")
    file, config = tmp_path / "mine.jsonl", tmp_path / "job.toml"
    file.write_bytes(jsonl(asked))
    config.write_text('model = "simulated"\npriority = "high"\n')
    done = d.control("submit", "--config", config, "--output-dir", tmp_path / "out", "--json", file)
    assert done.returncode == 0, done.stderr
    [entry] = json.loads(done.stdout)["jobs"]
    assert (entry["state"], entry["succeeded"], entry["priority"]) == ("done", 12, "high")
    assert (Path(entry["copied_to"]) / "summary.json").exists()
    assert {r["model"] for r in d.done("mine.jsonl").results} == {"simulated"}


def test_status_file_appears_at_once_and_follows(daemon: Start) -> None:
    d = daemon(simulator={"service_s": {"kind": "fixed", "value": 0.5}})
    d.drop("watched.jsonl", prompts(24))
    begun_s = time.monotonic()
    job = d.job("watched.jsonl", 2)
    assert time.monotonic() - begun_s < 2
    assert job.status["succeeded"] < 24
    assert job.status["name"] == "watched.jsonl"
    assert job.status["model"] == "tiny"
    wait_for(lambda: 0 < job.status["succeeded"] < 24 and job.status["requests"] == 24, 5, "progress")
    d.done("watched.jsonl").check()
    wait_for(lambda: job.status["state"] == "done", 3, "status.json says done")
    assert job.status["succeeded"] == 24


def test_a_model_that_cannot_be_pulled_fails_the_job_and_says_why(plain: Daemon) -> None:
    d = plain
    d.drop("gone.jsonl", prompts(5, model="missing-model"))
    d.drop("fine.jsonl", prompts(5))
    d.done("fine.jsonl").check()
    job = d.done("gone.jsonl")
    summary = job.check(failed=5)
    assert set(summary["failures"]) <= {"model_not_found", "pull_failed"}
    [group] = summary["failures"].values()
    assert "missing-model" in group["example"]
    assert group["advice"]


def test_a_model_that_is_not_there_is_pulled_once(daemon: Start) -> None:
    d = daemon(simulator={"pull_s": 0.3})
    asked = prompts(40, model="newcomer")
    d.drop("new.jsonl", asked)
    d.done("new.jsonl").check(asked)
    assert "newcomer:latest" in [m["model"] for m in d.client.get("models")["models"]]


def test_a_model_has_one_profile_for_all_of_its_names(daemon: Start) -> None:
    d = daemon({"model": "tiny:latest"}, simulator={"tokens_per_s": 100, "answer": {"tokens": 4}})
    both = prompts(40)
    for request in both[::2]:
        request["model"] = "tiny"
    for name, asked in (("unnamed", prompts(40)), ("tagged", prompts(40, model="tiny:latest")), ("both", both)):
        d.drop(f"{name}.jsonl", asked)
    for name in ("unnamed", "tagged", "both"):
        job = d.done(f"{name}.jsonl")
        assert {result["model"] for result in job.results} == {"tiny"} and job.check()["models"].keys() == {"tiny"}
    assert all(len(server["loads"]) <= 1 for server in d.seen())


def test_no_model_named_is_said_in_words(daemon: Start) -> None:
    d = daemon({"model": ""})
    d.drop("nameless.jsonl", [*prompts(2), {"id": "named", "prompt": "with", "model": "tiny"}])
    job = d.done("nameless.jsonl")
    job.check(failed=2)
    assert job.codes() == {"no_model": 2}
    assert "job.toml" in job.errors[0]["message"]


def test_a_second_drop_of_the_same_content_runs_and_is_noted(plain: Daemon) -> None:
    d = plain
    asked = prompts(4, "twice")
    d.drop("first.jsonl", asked)
    first = d.done("first.jsonl")
    d.drop("second.jsonl", asked)
    second = d.done("second.jsonl")
    second.check(asked)
    assert any(first.id in note for note in second.summary["notes"])


def test_bad_lines_fail_alone_and_bad_drops_go_to_failed(plain: Daemon) -> None:
    d = plain
    known = set((d.spool / "failed").rglob("*.error.txt"))  # of the other tests on this daemon
    lines = b'{"id": "a", "prompt": "one"}\n{broken\n{"id": "a", "prompt": "again"}\n{"id": "b"}\n\xff\xfe\n'
    d.drop("mixed.jsonl", lines)
    d.drop("empty.json", b"[]")
    d.drop("notes.docx", b"hello")
    job = d.done("mixed.jsonl")
    job.check(failed=4)
    assert job.codes() == {"bad_json": 1, "duplicate_id": 1, "missing_prompt": 1, "invalid_utf8": 1}
    assert "line 2" in next(e["message"] for e in job.errors if e["code"] == "bad_json")
    errors = wait_for(lambda: e if len(e := set((d.spool / "failed").rglob("*.error.txt")) - known) == 2 else set(), 5)
    assert {path.name for path in errors} == {"empty.json.error.txt", "notes.docx.error.txt"}


@pytest.mark.near
def test_a_large_job_streams(daemon: Start) -> None:
    d = daemon({"gpus": {"use": "simulated:2"}, "log_level": "info"}, simulator={"answer": {"tokens": 1}})
    count = 20_000
    text = b"".join(b'{"prompt": "number %d"}\n' % i for i in range(count))
    begun_s = time.monotonic()
    d.drop("large.jsonl", text)
    wait_for(lambda: sum(s["requests_done"] for s in d.servers()) > 0, 5, "the first answer")
    first_s = time.monotonic() - begun_s
    job = d.done("large.jsonl", 100)
    print(f"\n{count} requests in {time.monotonic() - begun_s:.1f} s, the first answer after {first_s:.2f} s")
    summary = job.check({f"{i + 1:07d}": f"number {i}" for i in range(count)})
    assert summary["requests"] == count
    assert len(list((job.directory / "responses").glob("*.json"))) == count


def test_two_files_renamed_in_are_both_at_a_server_at_once(plain: Daemon) -> None:
    d = plain
    d.drop("warm.jsonl", prompts(8, "warm"))
    d.done("warm.jsonl")
    best_s, turn = float("inf"), 0
    while best_s >= 0.05 and turn < 25:  # what else the machine does can only make it slower
        turn += 1
        moved: dict[str, float] = {}
        for name in (f"one{turn}", f"two{turn}"):
            (d.root / name).write_bytes(jsonl([{"id": "x", "prompt": name}]))
        for name in (f"one{turn}", f"two{turn}"):
            os.rename(d.root / name, d.inbox / f"{name}.jsonl")
            moved[name] = time.time()
            time.sleep(0.005)
        for name in moved:
            d.done(f"{name}.jsonl")
        arrived = {r["prompt"]: r["at_s"] for r in d.received()}
        delays_s = [arrived[name] - moved[name] for name in moved]
        print(f"\nfrom rename to server: {', '.join(f'{delay_s * 1000:.1f} ms' for delay_s in delays_s)}")
        best_s = min(best_s, max(delays_s))
    assert best_s < 0.05  # an event that is held back takes 0.5 s


def test_a_file_written_slowly_is_not_taken_half(daemon: Start) -> None:
    d = daemon({"inbox": {"settle_s": 0.6}})
    asked = prompts(10)
    with open(d.inbox / "slow.jsonl", "wb") as file:
        for request in asked:
            file.write(jsonl([request]))
            file.flush()
            time.sleep(0.15)
            assert not list(d.outbox.iterdir())
    d.done("slow.jsonl").check(asked)


@pytest.mark.near
def test_every_slot_is_used_while_the_queue_is_not_empty(daemon: Start) -> None:
    d = daemon({"gpus": {"use": "simulated:8"}}, simulator={"service_s": {"kind": "uniform", "low": 0.2, "high": 0.4}})
    assert all(s["gpu"]["utilisation_percent"] <= 5 for s in d.servers())
    asked = prompts(400)
    d.drop("many.jsonl", asked)
    wait_for(lambda: all(s["loaded"] for s in d.servers()), 10, "every server has the model")
    busy: Counter[int] = Counter()
    peak: dict[str, float] = {}
    while (status := d.status())["queue"]["requests"]:
        busy[sum(s["in_flight"] for s in status["servers"])] += 1
        for server in status["servers"]:
            peak[server["id"]] = max(peak.get(server["id"], 0), server["gpu"]["utilisation_percent"])
        time.sleep(0.02)
    d.done("many.jsonl").check(asked)
    seen = d.seen()
    assert [s["max_in_flight"] for s in seen] == [4] * 8
    assert all(value >= 70 for value in peak.values()), peak
    assert len(peak) == 8
    looks = sorted(busy.elements())
    print(f"\nslots in use while requests waited, of 32: {dict(busy)}")
    assert looks[-1] == 32 and looks[len(looks) // 2] >= 31  # an end is counted a moment before the next start
    assert sum(looks) / len(looks) > 30
    wait_for(lambda: all(s["gpu"]["utilisation_percent"] <= 5 for s in d.servers()), 5, "the GPUs idle")


def test_status_is_one_json_document(daemon: Start) -> None:
    d = daemon()
    answer = d.control("status", "--json")
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["state"] == "running"
    assert ask_server(d.servers()[0]["url"], "/simulator/state")["simulated"] is True
    d.stop()
    down = d.control("status")
    assert down.returncode == 3
    assert "obatchd is not running" in down.stderr
