"""What users write stays out of logs, status and other people's sight, and is gone when it is erased."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from daemon_support import Daemon, digest, prompts, wait_for

CANARY = "c4n4ry"


def holding(root: Path, *words: str) -> set[str]:
    """Names of the files below ``root`` that hold any of these words, or have it in their name."""
    found = set()
    for directory, folders, files in os.walk(root):
        for name in (*folders, *files):
            path, content = Path(directory, name), b""
            with contextlib.suppress(OSError):  # a folder, or gone by now
                content = path.read_bytes()
            if any(word in name or word.encode() in content for word in words):
                found.add(str(path.relative_to(root)))
    return found


def test_logs_and_status_say_nothing_of_what_users_write(make_daemon: Callable[..., Daemon]) -> None:
    secret = {"prompt": f"{CANARY} prompt", "id": f"{CANARY}-id", "options": {"stop": [CANARY]}}
    d = make_daemon({"inbox": {"empty_s": 0.3}}).start(OLLAMA_DEBUG="2", OLLAMA_DEBUG_LOG_REQUESTS="1").ready()
    for server in d.servers():
        environment = Path(f"/proc/{server['pid']}/environ").read_bytes()
        assert b"OLLAMA_DEBUG" not in environment
    d.faults({"kind": "crash", "at": 1}, server=0)
    bad_lines = f'{{"prompt": "{CANARY}"\n{{"id": "{CANARY}"}}\n'.encode()
    d.drop(f"{CANARY}-good.jsonl", [secret, secret, *prompts(8, CANARY)])
    d.drop(f"{CANARY}-bad.jsonl", bad_lines)
    d.drop(f"{CANARY}-foreign.docx", CANARY.encode())
    d.drop(f"{CANARY}-empty.jsonl", b"")
    (d.inbox / f"{CANARY}-link.jsonl").symlink_to("/etc/passwd")
    d.drop(f"{CANARY}-wrong.jsonl", f"\xff\xfe{CANARY}".encode("latin-1"))
    settings = d.root / f"{CANARY}.toml"
    settings.write_text(f'system_message = "{CANARY}"\n')
    prompt_file = d.root / f"{CANARY}-submitted.jsonl"
    prompt_file.write_text(json.dumps(secret) + "\n")
    assert d.control("submit", "--config", settings, prompt_file).returncode == 0
    assert d.control("submit", "--model", f"{CANARY}-none", d.root / f"{CANARY}.toml").returncode == 1
    for name in (f"{CANARY}-good", f"{CANARY}-bad", f"{CANARY}-submitted"):
        d.done(name)
    wait_for(lambda: d.status()["inbox"]["refused"] >= 4, what="four drops are refused")
    answers = [record["response"][:20] for record in d.job(f"{CANARY}-good").results]
    assert answers
    d.stop()
    told = d.log() + "".join(path.read_text() for path in (d.spool / "work" / "logs").iterdir())
    assert [line for line in told.splitlines() if CANARY in line or any(a in line for a in answers)] == []


def test_erasing_a_job_leaves_nothing_of_it(daemon: Callable[..., Daemon]) -> None:
    d = daemon()
    d.drop(f"{CANARY}.jsonl", [{"prompt": f"{CANARY} {n}", "id": f"{CANARY}-{n}"} for n in range(20)])
    d.drop("other.jsonl", prompts(5))
    d.drop(f"{CANARY}-wrong.jsonl", f"\xff\xfe{CANARY}".encode("latin-1"))
    job, other = d.done(CANARY), d.done("other")
    words = [CANARY, *(digest(f"{CANARY} {n}") for n in range(20))]
    d.client.post("pause")
    d.drop("long.jsonl", prompts(3))
    long = d.job("long")
    refusal = d.control("rm", long.id)
    assert refusal.returncode == 1 and f"obatchctl cancel {long.id}" in refusal.stderr
    [wrong] = [one["job"] for one in d.client.get("jobs", state="refused")["jobs"]]
    assert len(holding(d.spool, *words)) > 5
    assert d.control("rm", job.id, wrong).returncode == 0
    assert holding(d.spool, *words) == set()
    assert d.control("job", job.id).returncode == 1
    other.check(prompts(5))
    d.client.post("resume")
    d.done("long").check(prompts(3))
    assert d.control("rm", other.id).returncode == 0 and not other.directory.exists()


def test_what_is_older_than_retention_days_is_erased(make_daemon: Callable[..., Daemon]) -> None:
    d = make_daemon().start().ready()
    d.drop(f"{CANARY}.jsonl", [{"prompt": CANARY, "id": CANARY}])
    d.done(CANARY)
    d.drop(f"{CANARY}.docx", b"x")
    wait_for(lambda: d.status()["inbox"]["refused"] == 1)
    d.stop()
    assert holding(d.spool, CANARY)
    for path in (d.spool / "failed").glob("*/*"):
        os.utime(path, (1, 1))
    d.configure({"disk": {"retention_days": 1e-9}})
    d.start()
    wait_for(lambda: holding(d.spool, CANARY) == set(), 15, "everything old is erased")
