"""What has to be true after a storm: every request answered once and rightly, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
from daemon_support import Document, digest
from storm import Sample, Storm
from storm_plan import Drop
from storm_programs import faults_of

_END_S = 3.0  # a killed process may take that long to be gone
_GROWTH_LIMIT_BYTES = 16 * 1024**2
_GROWTH_LIMIT_DESCRIPTORS = 6
_CODE = re.compile(r" event=attempt_failed .*? code=(\w+) ")


class Verdict(NamedTuple):
    """``violations`` is empty when every promise was kept; ``rows`` is the table of what happened."""

    violations: list[str]
    rows: list[tuple[str, str]]


def judge(storm: Storm, took_s: float, *, real: bool = False) -> Verdict:
    """Look at everything that the storm left. ``real`` servers answer what they like, but to the right prompt."""
    outcomes, of_programs = Counter[str](), Counter[str]()
    violations = [
        *_drops(storm, outcomes, of_programs, real=real),
        *_spool(storm),
        *_left(storm),
        *_flat(storm.samples),
    ]
    log = storm.d.log()
    violations += [f"the daemon logged a defect: {where}" for where in _tracebacks(log)]
    violations += [f"{count} kills of {what} could not be done" for what, count in storm.missed.items()]
    if storm.exit_code != 0:
        violations.append(f"the daemon ended with exit code {storm.exit_code}")
    if sum(outcomes.values()) < storm.plan.requests:
        violations.append(f"only {sum(outcomes.values())} of {storm.plan.requests} requests have a result")
    return Verdict(violations, list(_rows(storm, (outcomes, of_programs), log, took_s)))


# Requests.


def _drops(storm: Storm, outcomes: Counter[str], of_programs: Counter[str], *, real: bool) -> Iterator[str]:
    """Each drop is one complete job with one right result for each request; a refused one is in ``failed/``."""
    jobs: dict[str, list[Path]] = {}
    for path in storm.d.outbox.iterdir():
        jobs.setdefault(path.name.rpartition(".")[0], []).append(path)
    refused = {path.name: path for path in (storm.d.spool / "failed").rglob("*") if path.is_file()}
    for drop in storm.handed_over:
        found = jobs.pop(drop.name.partition(".")[0], [])
        if drop.refused:
            if found or drop.name not in refused or f"{drop.name}.error.txt" not in refused:
                yield f"{drop.name} should have been refused, with its reason beside it"
        elif len(found) != 1:
            yield f"{drop.name} has {len(found)} jobs in the outbox"
        else:
            yield from _job(drop, found[0], outcomes, real=real)
    for batch in storm.programs.made:
        found = jobs.pop(batch.name, [])
        if len(found) != 1:
            yield f"the batch {batch.name} has {len(found)} jobs in the outbox"
        yield from (fault for path in found for fault in faults_of(batch, path, of_programs, real=real))
    for drop in storm.unanswered:
        found = jobs.pop(drop.name.partition(".")[0], [])
        if len(found) > 1:
            yield f"{drop.name} was submitted once and has {len(found)} jobs"
        for path in found:
            yield from _job(drop, path, Counter(), real=real)
    yield from (f"the outbox has {path}, which nobody dropped" for paths in jobs.values() for path in paths)
    wanted = {name for drop in storm.handed_over if drop.refused for name in (drop.name, f"{drop.name}.error.txt")}
    yield from (f"failed/ has {path}, which should have run" for name, path in refused.items() if name not in wanted)


def _job(drop: Drop, directory: Path, outcomes: Counter[str], *, real: bool) -> Iterator[str]:
    names = ("results.jsonl", "errors.jsonl", "summary.json", "status.json")
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        yield f"{directory.name} has no {', '.join(missing)}"
        return
    results, errors = ([json.loads(line) for line in (directory / n).read_bytes().splitlines()] for n in names[:2])
    summary = json.loads((directory / "summary.json").read_bytes())
    by_line: dict[int, list[Document]] = {}
    for record in (*results, *errors):
        by_line.setdefault(record["line"], []).append(record)
    for request in drop.asked:
        records = by_line.pop(request.line, [])
        if len(records) != 1:
            yield f"{directory.name}, line {request.line}: {len(records)} results"
            continue
        [record] = records
        outcomes[record.get("code", record["outcome"])] += 1
        if record["attempts"] and record["id"] != request.id:  # a line that was refused may be called by its number
            yield f"{directory.name}, line {request.line}: is called {record['id']}, not {request.id}"
        if request.codes:
            if record.get("code") not in request.codes:
                yield f"{directory.name}, line {request.line}: {_short(record)} instead of {sorted(request.codes)}"
        elif record["outcome"] != "succeeded" or record["prompt"] != request.prompt:
            yield f"{directory.name}, line {request.line}: {_short(record)} instead of an answer"
        elif not (record["response"] if real else record["response"].startswith(digest(request.prompt))):
            yield f"{directory.name}, line {request.line}: not the answer to its own prompt"
    yield from (f"{directory.name}, line {line}: a result of nobody's" for line in by_line)
    if [record["line"] for record in results] != sorted(record["line"] for record in results):
        yield f"{directory.name}: results are out of order"
    if (summary["succeeded"], summary["failed"]) != (len(results), len(errors)):
        yield f"{directory.name}: the summary says {summary['succeeded']} and {summary['failed']}"
    yield from _response_files(directory, results)


def _response_files(directory: Path, results: list[Document]) -> Iterator[str]:
    files = {path.name for path in (directory / "responses").iterdir()} if (directory / "responses").exists() else set()
    if len(files) != 2 * len(results):
        yield f"{directory.name}: {len(files)} response files for {len(results)} answers"
        return
    for record in results:
        path = directory / "responses" / f"{record['id']}.json"
        if json.loads(path.read_bytes())["response"] != record["response"]:
            yield f"{path}: not the recorded answer"
        if path.with_suffix(".txt").read_text().strip() != record["response"].strip():
            yield f"{path.with_suffix('.txt')}: not the recorded answer"


def _short(record: Document) -> str:
    if record["outcome"] == "succeeded":
        return f"succeeded with {record['response'][:40]!r}"
    return f"{record['code']} after {record['attempts']} attempts ({record['message'][:200]})"


# What is left.


def _spool(storm: Storm) -> Iterator[str]:
    yield from (f"{path} is still in the inbox" for path in storm.d.inbox.iterdir())
    yield from (f"{path} is a file half written" for path in storm.d.outbox.rglob(".*"))
    yield from (f"{path} is an upload that was cut off" for path in (storm.d.spool / "work" / "uploads").iterdir())
    yield from (f"{path} was set aside as damaged" for path in storm.d.spool.rglob("*.corrupt-*"))


def _left(storm: Storm) -> Iterator[str]:
    yield from (f"process {process.pid} of a server is left" for process in storm.d.servers_alive())
    deadline_s = time.monotonic() + _END_S
    left = [process for process in storm.seen if _lives(process)]
    while left and time.monotonic() < deadline_s:
        time.sleep(0.05)
        left = [process for process in left if _lives(process)]
    yield from (f"process {process.pid} is left" for process in left)
    for port in sorted(storm.ports):
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                yield f"port {port} is still served"


def _lives(process: psutil.Process) -> bool:
    """Whether it still runs; its number may have gone to another process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _flat(samples: list[Sample]) -> Iterator[str]:
    """Open files and memory of the daemon's last life: its last quarter beside its second."""
    if len(samples) < 12:
        return
    (files, begun), (files_later, later) = _quarters(samples)
    if files_later > files + _GROWTH_LIMIT_DESCRIPTORS:
        yield f"open files of the daemon grew from {files} to {files_later}"
    if later > begun + _GROWTH_LIMIT_BYTES:
        yield f"memory of the daemon grew from {begun / 1e6:.0f} to {later / 1e6:.0f} MB"


def _quarters(samples: list[Sample]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Most open files and least memory in the second quarter and in the last."""
    quarter = max(1, len(samples) // 4)
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    return _steady(second), _steady(last)


def _steady(samples: Iterable[Sample]) -> tuple[int, int]:
    """A part that is dead at the moment of a sample has no pipes and sockets then, up to five each: so the most."""
    found = list(samples)
    return max(s.descriptors for s in found), min(s.rss_bytes for s in found)


def _tracebacks(log: str) -> Iterator[str]:
    """Where tracebacks begin. A forkserver whose daemon is killed while it asks for a process says so with one, and so
    does the process that was to be."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        frames = lines[number + 1 : number + 3]
        if "Traceback" in line and not any("multiprocessing/forkserver.py" in frame for frame in frames):
            yield frames[0].strip() if frames else line


# What happened.


def _rows(
    storm: Storm, counted: tuple[Counter[str], Counter[str]], log: str, took_s: float
) -> Iterator[tuple[str, str]]:
    outcomes, of_programs = counted
    plan = storm.plan
    answered = sum(outcomes.values())
    kinds = Counter(_kind(drop) for drop in storm.handed_over)
    yield "seed", str(plan.seed)
    yield "requests", f"{answered} in {len(storm.handed_over)} drops ({_listed(kinds)})"
    yield "batches of programs", f"{len(storm.programs.made)} ({_listed(of_programs)})"
    yield "unanswered submissions", f"{len(storm.unanswered)}, each handed over again under another name"
    yield "outcomes", _listed(outcomes)
    deaths = {what: count for what, count in storm.kills.items() if what.startswith("daemon")}
    yield "kills", f"{sum(storm.kills.values())} of {plan.kills} planned"
    yield "  of the daemon", f"{sum(deaths.values())} ({_listed(Counter(deaths))})"
    yield "  of its parts", _listed(Counter({w: n for w, n in storm.kills.items() if w not in deaths}))
    yield "failed attempts", _listed(Counter(_CODE.findall(log)))
    yield "watchdog", _listed(Counter(re.findall(r" event=watchdog_(\w+) ", log)))
    if len(storm.samples) >= 4:
        (files, begun), (files_later, later) = _quarters(storm.samples)
        yield "last life", f"{len(storm.samples)} samples: open files {files} → {files_later}, memory " \
            f"{begun / 1e6:.1f} → {later / 1e6:.1f} MB"  # fmt: skip
    yield "time", f"{took_s:.0f} s, {took_s / max(1, sum(storm.kills.values())):.2f} s a kill"


def _kind(drop: Drop) -> str:
    if drop.refused:
        return "no JSON"
    if isinstance(drop.content, dict):
        return "folder"
    return drop.name.partition(".")[2] + (" submitted" if drop.submitted else "")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())
