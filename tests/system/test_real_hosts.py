"""Two hosts, each with servers of a real Ollama on a core and a model store of its own, work off the two jobs of the
original project for a head that has no server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import toml
from cluster_support import Head, HostProcess
from daemon_support import Job, jsonl
from ollama_support import real_command, real_models, real_version
from process_support import wait_for
from test_real_engine import access, whole

pytestmark = [pytest.mark.real_ollama, pytest.mark.timeout(180)]
SERVERS = ["node01.cpu0", "node01.cpu1", "node02.cpu0", "node02.cpu1"]
PROMPTS = [{"role": "user", "content": f"What is {i} plus one?"} for i in range(80)]
NOTES = [{"role": "user", "content": f"Person {i} (MRN: {i}), aged {20 + i}, came with a cough."} for i in range(60)]


@contextmanager
def one_core(number: int) -> Iterator[None]:
    """What is started in here has one core of this machine: servers of several hosts would fight for all of them."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[number % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@pytest.fixture
def fleet(
    make_head: Callable[..., Head], make_host: Callable[..., HostProcess], tmp_path: Path
) -> tuple[Head, list[HostProcess]]:
    """A head, and two hosts with two CPU servers each, which are READY."""
    if (command := real_command()) is None:
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")
    # Its answers are never empty, so none is asked for twice.
    head = make_head({"model": "endless", "system_message": "Answer briefly.", "max_response_tokens": 32}).start()
    hosts = []
    for number in range(2):
        store = tmp_path / f"models{number}"
        shutil.copytree(real_models(), store)
        servers = {"ollama": command[0], "models_dir": str(store), "cpu_servers": 2}
        host = make_host(head, config={"gpus": {"use": "none"}, "servers": servers}).join()
        with one_core(number):
            host.launch()
        hosts.append(host)
    head.has_ready(len(SERVERS))
    return head, hosts


def said(head: Head, *words: str | Path) -> str:
    """What ``obatchctl`` prints at the head."""
    done = head.control(*words, timeout_s=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submitted_with_its_configuration(head: Head, directory: Path) -> Job:
    """The second job of the original project: it has a configuration of its own, which names servers, too."""
    notes, config, answers = (directory / name for name in ("clinical-notes.jsonl", "clinical-notes.toml", "answers"))
    notes.write_bytes(jsonl(NOTES))
    instructions = 'Extract {"mrn": "", "age": 0} from the note. Answer with JSON only.'
    settings = {"model": "endless", "system_message": instructions, "ollama_instances": {"gpu-server1:11432": 0}}
    config.write_text(toml.dumps(settings))
    said(head, "submit", notes, "--config", config, "--output-dir", answers, "--wait")
    [directory] = answers.iterdir()
    return Job(directory)


def test_two_hosts_answer_the_two_jobs_of_the_original_project(
    fleet: tuple[Head, list[HostProcess]], tmp_path: Path
) -> None:
    head, hosts = fleet
    head.drop("prompts.jsonl", PROMPTS)
    clinical = submitted_with_its_configuration(head, tmp_path)
    first = whole(head.done("prompts.jsonl", 60), ids(PROMPTS))
    second = whole(clinical, ids(NOTES))
    assert second["settings"]["system_message"].startswith("Extract"), "the job's own, not the head's"
    for summary in (first, second):
        assert {server.partition(".")[0] for server in summary["servers"]} == {"node01", "node02"}
        assert {use["ollama_version"] for use in summary["servers"].values()} == {real_version()}

    logs = {
        f"{host.name}.{log.stem}": log.read_text() for host in hosts for log in host.directory.glob("logs/cpu*.log")
    }
    assert sorted(logs) == SERVERS
    assert {name: log.count('msg="loaded runners"') for name, log in logs.items()} == dict.fromkeys(SERVERS, 1)
    answered = [status for log in logs.values() for status, _ in access(log)]
    assert answered == [200] * (len(PROMPTS) + len(NOTES)), "each prompt was asked once"

    listed, status = said(head, "hosts"), said(head, "status")
    for host in hosts:
        assert host.name in listed and host.name in status
    assert [server["id"] for server in head.servers()] == SERVERS
    page = said(head, "doctor")
    for host in hosts:
        of_host = page.partition(f"\nhost {host.name}\n")[2].partition("\nhost ")[0]
        assert f"ollama  {real_version()} at " in of_host and str(host.root.parent / "models") in of_host
    for host in hosts:
        assert host.stop() == 0
    wait_for(lambda: not any(host.left() for host in hosts), 10, "nothing of a host is left")


def ids(asked: list[dict[str, Any]]) -> set[str]:
    """Of requests that have none: their lines."""
    return {f"{line:07d}" for line in range(1, len(asked) + 1)}
