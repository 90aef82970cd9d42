"""The whole daemon with a real Ollama on the CPU and the tiny models."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemon_support import Daemon, Job, json_array_gz, jsonl, kill_server, prompts, wait_for
from ollama_support import real_line, real_version
from process_support import alive

Start = Callable[..., Daemon]
pytestmark = [pytest.mark.real_ollama, pytest.mark.timeout(180)]
# One line per request in the access log: status, duration, path.
_ACCESS = re.compile(r"\| (\d{3}) \|\s+([0-9.a-zµ]+) \|.*POST\s+\"/api/chat\"")
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}


@pytest.fixture
def real(make_daemon: Start) -> Iterator[Callable[..., Daemon]]:
    """Starts a daemon on real CPU servers: ``real(servers={…}, model=…)``."""
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")

    def start(servers: dict[str, Any] | None = None, **config: Any) -> Daemon:
        own = {"ollama": program, "models_dir": models, "cpu_servers": 2, "slots": 4, **(servers or {})}
        settings = {"gpus": {"use": "none"}, "max_response_tokens": 64, "servers": own, **config}
        return make_daemon(settings).start().ready()

    yield start


def duration_s(text: str) -> float:
    """Seconds in a duration as Go prints it."""
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(r"([0-9.]+)(h|ms|µs|ns|m|s)", text))


def server_log(d: Daemon, server: str) -> str:
    return (d.spool / "work" / "logs" / f"{server}.log").read_text(errors="replace")


def access(log: str) -> list[tuple[int, float]]:
    """(status, seconds) of every prompt that a server with this log says it answered."""
    return [(int(status), duration_s(text)) for status, text in _ACCESS.findall(log)]


def whole(job: Job, ids: set[str]) -> dict[str, Any]:
    """Every request of a job succeeded once; its summary."""
    results = job.results
    assert job.errors == []
    assert sorted(record["id"] for record in results) == sorted(ids)
    assert all(record["response"].strip() for record in results)
    summary = job.summary
    assert summary["requests"] == summary["succeeded"] == len(ids)
    assert summary["response_tokens"] == sum(record["response_tokens"] for record in results)
    return summary


@pytest.mark.alone
def test_three_drops_keep_two_real_servers_busy(real: Start) -> None:
    # Answers of 256 tokens: with 60 ms each, what passes between two of them weighs more than the servers' time.
    d = real(model="endless", max_response_tokens=256)
    extraction = [
        {"role": "user", "content": f"Extract name and age: person {i} is {20 + i} years old."} for i in range(60)
    ]
    folder = {f"note{i:02}.json": json.dumps({"prompt": f"Summarise note {i}."}).encode() for i in range(20)}
    array = prompts(160, "array")  # enough that the end, when servers run empty one by one, weighs little
    d.drop_all({"extract.jsonl": jsonl(extraction), "notes": folder, "array.json.gz": json_array_gz(array)})
    extract, notes, packed = (d.done(name, 90) for name in ("extract.jsonl", "notes", "array.json.gz"))
    summary = whole(extract, {f"{i:07d}" for i in range(1, 61)})
    whole(notes, {f"note{i:02}" for i in range(20)})
    whole(packed, {request["id"] for request in array})
    assert set(summary["servers"]) == {"cpu0", "cpu1"}
    assert {use["ollama_version"] for use in summary["servers"].values()} == {real_version()}
    assert summary["models"]["endless"]["quantization"] == "F16"

    begun = min(record["started_at"] for job in (extract, notes, packed) for record in job.results)
    ended = max(record["finished_at"] for job in (extract, notes, packed) for record in job.results)
    span_s = _seconds(ended) - _seconds(begun)
    for server in ("cpu0", "cpu1"):
        answered = access(server_log(d, server))
        assert all(status == 200 for status, _ in answered)
        in_flight = sum(seconds for _, seconds in answered) / span_s
        print(f"{server}: {len(answered)} answers, {in_flight:.2f} in flight on average by its own log")
        assert 3.0 < in_flight < 4.3


def _seconds(instant: str) -> float:
    hours, minutes, seconds = instant.rstrip("Z").partition("T")[2].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def test_the_original_configuration_works_with_real_remote_servers(real: Start, make_daemon: Start) -> None:
    theirs = real()
    urls = [server["url"].removeprefix("http://") for server in theirs.servers()]
    instances = "\n".join(f'"{url}" = {index}' for index, url in enumerate(urls))
    d = make_daemon(f'model = "tiny"\nsystem_message = "Answer briefly."\n\n[ollama_instances]\n{instances}\n')
    d.start().ready()
    asked = [{"role": "user", "content": f"What is {i} plus one?"} for i in range(60)]
    d.drop("questions.jsonl", asked)
    summary = whole(d.done("questions.jsonl", 90), {f"{i:07d}" for i in range(1, 61)})
    assert len(summary["servers"]) == 2
    assert d.servers_alive() == []


def test_a_prompt_is_never_cut(real: Start, tmp_path: Path) -> None:
    # At this level 0.24 logs each prompt as it is given to the model, 0.33 its length. obatchd refuses to set it.
    telling = tmp_path / "ollama"
    telling.write_text(f'#!/bin/sh\nOLLAMA_DEBUG=2 exec "{os.environ.get("OBATCHD_TEST_OLLAMA")}" "$@"\n')
    telling.chmod(0o755)
    d = real({"ollama": str(telling), "cpu_servers": 1})
    words = "xylophone " + "word number " * 400
    d.drop("long.jsonl", [{"id": "cut", "prompt": words, "context_length": 4096}, {"id": "short", "prompt": "hello"}])
    job = d.done("long.jsonl", 60)
    assert job.codes() == {"context_exceeded": 1}
    assert [record["id"] for record in job.results] == ["short"]
    assert sorted(status for status, _ in access(server_log(d, "cpu0"))) == [200, 400]
    d.drop("fits.jsonl", [{"id": "fits", "prompt": words, "context_length": 16384, "max_response_tokens": 4}])
    fits = d.done("fits.jsonl", 120)
    assert fits.errors == []
    [record] = fits.results
    assert 4096 < record["prompt_tokens"] < 16384
    assert "truncating input prompt" not in server_log(d, "cpu0")
    run = "\n".join(line for line in server_log(d, "cpu0").splitlines() if "completion request" in line)
    rendered = f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n"
    assert ("xylophone word number" if real_line() == "0.24" else f"prompt_len={len(rendered)}") in run


@pytest.mark.root
def test_two_models_and_two_owners_share_one_server_without_ping_pong(real: Start) -> None:
    d = real({"cpu_servers": 1}, dispatch={"switch_after_s": 4})
    d.client.post("pause")
    mixed = [{**request, "model": ("tiny", "tiny2")[i % 2]} for i, request in enumerate(prompts(200, "mixed"))]
    other = [{**request, "model": "tiny2"} for request in prompts(60, "other")]
    d.drop("mixed.jsonl", mixed, owner=12345)
    d.drop("other.jsonl", other, owner=23456)
    wait_for(lambda: d.status()["queue"]["requests"] == 260, what="both jobs are indexed")
    d.client.post("resume")
    first, second = d.done("mixed.jsonl", 120), d.done("other.jsonl", 120)
    whole(first, {request["id"] for request in mixed})
    whole(second, {request["id"] for request in other})
    span_s = max(_seconds(r["finished_at"]) for r in first.results) - min(
        _seconds(r["started_at"]) for r in first.results
    )
    # One line per load; "llama runner started in" comes twice for each.
    loads = server_log(d, "cpu0").count('msg="loaded runners"')
    print(f"{loads} loads in {span_s:.1f} s")
    assert 2 <= loads <= 2 + span_s / 4
    last_of_first = max(r["finished_at"] for r in first.results)
    assert min(r["started_at"] for r in second.results) < last_of_first


def runners(server: dict[str, Any]) -> list[psutil.Process]:
    return psutil.Process(server["pid"]).children(recursive=True)


def test_kill_9_of_a_server_loses_nothing_and_leaves_no_runner(real: Start) -> None:
    d = real()
    asked = prompts(300)
    d.drop("job.jsonl", asked)
    wait_for(lambda: all(server["requests_done"] > 10 for server in d.servers()), 60, "both servers work")
    victim = d.servers()[0]
    old = runners(victim)
    assert old
    kill_server(victim)
    wait_for(lambda: not any(alive(process.pid) for process in old), 15, "its runner is gone too")
    whole(d.done("job.jsonl", 120), {request["id"] for request in asked})
    assert d.servers()[0]["restarts"] == 1


def test_a_job_goes_on_after_every_kind_of_end(real: Start) -> None:
    d = real()
    asked = prompts(800)
    d.drop("job.jsonl", asked)

    def answered() -> int:
        jobs = d.status()["jobs"]
        return int(jobs[0]["succeeded"]) if jobs else 0

    wait_for(lambda: answered() > 40, 60, "the job runs")
    os.kill(d.servers()[0]["worker_pid"], signal.SIGKILL)
    before = answered()
    wait_for(lambda: answered() > before + 40, 60, "it goes on without that worker")
    assert d.stop() == 0
    assert d.servers_alive() == []
    d.start().ready()
    before = answered()
    wait_for(lambda: answered() > before + 40, 60, "it goes on after SIGTERM and a new start")
    parts = d.kill()
    _, left = psutil.wait_procs(parts, timeout=2)
    assert not [process for process in left if alive(process.pid)]  # init may take a while to reap
    orphans = d.servers_alive()
    assert orphans
    d.start()
    assert not any(alive(process.pid) for process in orphans)
    whole(d.done("job.jsonl", 120), {request["id"] for request in asked})
