"""Effects of settings on drops and jobs: inbox, limits, models, what is kept, alarms."""

from __future__ import annotations

import gzip
import lzma
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from daemon_support import Job, jsonl, prompts, wait_for
from reload_stage import Effect, Scene, Stage, becomes

ASK = {"prompt": "why?"}


# The inbox.


def file_is_taken(stage: Stage) -> bool:
    """A file that is written where it lies, by its own name."""
    path = stage.d.inbox / stage.name()
    path.write_bytes(jsonl([ASK]))
    return becomes(lambda: not path.exists())


def folder_is_taken(stage: Stage) -> bool:
    path = stage.d.inbox / stage.name("")
    path.mkdir()
    (path / "a.jsonl").write_bytes(jsonl([ASK]))
    return becomes(lambda: not path.exists())


def empty_file_is_refused(stage: Stage) -> bool:
    path = stage.d.inbox / stage.name()
    path.touch()
    return becomes(lambda: not path.exists())


def long_line(stage: Stage) -> dict[str, int]:
    return stage.codes({"prompt": "x" * 2000})


def three_requests(stage: Stage) -> dict[str, int]:
    return stage.codes(*prompts(3))


def packed_drop(stage: Stage) -> dict[str, int]:
    return dict(stage.run(content=gzip.compress(jsonl([{"prompt": "x" * 3000}])), ending=".jsonl.gz").codes())


def archive(stage: Stage) -> str:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as zip_:
        zip_.writestr("a.jsonl", jsonl([ASK]))
    return stage.fate(packed.getvalue(), ".zip")


def packed_with_much_memory(stage: Stage) -> str:
    """The dictionary of xz -9 alone takes 64 MiB."""
    return stage.fate(lzma.compress(jsonl([ASK]), preset=9), ".jsonl.xz")


def one_bad_line(stage: Stage) -> str:
    return stage.fate(jsonl([ASK]) + b"no JSON\n")


def same_content(stage: Stage) -> str:
    return stage.fate([{"prompt": "always the same"}])


# Owners' limits, the disk, models.


def jobs_at_a_time(stage: Stage) -> int:
    """How many of two drops become jobs while nothing is answered."""
    d = stage.d
    names = [stage.name(), stage.name()]
    d.client.post("pause")
    d.drop(names[0], prompts(3, "first"))
    wait_for(lambda: d.status()["jobs"], what="the first is a job")
    d.drop(names[1], prompts(3, "second"))
    wait_for(lambda: len(d.status()["jobs"]) == 2 or d.status()["inbox"]["blocked"], what="the second is seen")
    count = len(d.status()["jobs"])
    d.client.post("resume")
    for name in names:
        d.done(name)
    wait_for(lambda: not d.status()["jobs"], what="both are over")
    return count


def space(stage: Stage) -> bool:
    """Whether a drop is taken, once the disk was looked at with these settings."""
    path = stage.d.inbox / stage.name()
    was_low = is_low(stage)
    becomes(lambda: is_low(stage) is not was_low, 1.3)
    stage.d.drop(path.name, [ASK])
    return becomes(lambda: not path.exists(), 0.5)


def is_low(stage: Stage) -> bool:
    low: bool = stage.d.status()["disk"]["low"]
    return low


def model_of_its_own(stage: Stage) -> dict[str, int]:
    stage.run(ASK)  # so that the model has to be made sure of again
    return stage.codes({"model": "simulated", **ASK})


def model_to_pull(stage: Stage) -> dict[str, int]:
    return stage.codes({"model": stage.name(""), **ASK})


# What is kept.


def of_an_earlier_job(place: Callable[[Stage, Job], Path]) -> Callable[[Stage], bool]:
    """Whether something of a job stays that was done at the first look."""
    jobs: list[Job] = []

    def look(stage: Stage) -> bool:
        if not jobs:
            jobs.append(stage.run(ASK))
            wait_for(
                lambda: stage.d.client.get(f"jobs/{jobs[0].id}")["state"] == "done", what="the index knows it, too"
            )
        return not becomes(lambda: not place(stage, jobs[0]).exists(), 0.4)

    return look


def input_of(stage: Stage, job: Job) -> Path:
    return stage.d.spool / "work" / "jobs" / job.id


def results_of(stage: Stage, job: Job) -> Path:
    return job.directory


# Alarms.


def alarm_is_told(stage: Stage) -> bool:
    told = stage.d.root / "told"
    told.unlink(missing_ok=True)
    stage.run(ASK)
    return becomes(told.exists, 0.6)


def is_logged(stage: Stage) -> bool:
    job = stage.run(ASK)
    return becomes(lambda: f"event=job_done job={job.id}" in stage.d.log(), 0.4)


def late_alarm_is_told(stage: Stage) -> bool:
    """By a command that takes its time."""
    late = stage.d.root / "late"
    late.unlink(missing_ok=True)
    stage.run(ASK)
    return becomes(late.exists, 0.8)


TELL = ["sh", "-c", "cat > ~/told"]  # the home of these daemons is their own
TELL_LATE = ["sh", "-c", "sleep 0.4; cat > ~/late"]


DROPS = Scene(
    {
        "inbox.settle_s": Effect(600, 0.05, file_is_taken, (False, True)),
        "inbox.folder_settle_s": Effect(600, 0.05, folder_is_taken, (False, True)),
        "inbox.empty_s": Effect(600, 0.05, empty_file_is_refused, (False, True)),
        "inbox.max_line_bytes": Effect(10_000, 1024, long_line, ({}, {"line_too_long": 1})),
        "inbox.max_requests": Effect(10, 2, three_requests, ({}, {"too_many_requests": 1})),
        "inbox.max_unpacked_bytes": Effect(10_000, 1024, packed_drop, ({}, {"unpacked_too_large": 1})),
        "inbox.unpack_timeout_s": Effect(600, 1e-6, archive, ("done", "refused")),
        "inbox.unpack_memory_bytes": Effect(2**30, 2**26, packed_with_much_memory, ("done", "refused")),
        "inbox.on_invalid": Effect("fail_line", "fail_file", one_bad_line, ("done", "refused")),
        "inbox.dedupe": Effect("allow", "reject", same_content, ("done", "refused")),
        "disk.keep_done_s": Effect(1e6, 0, of_an_earlier_job(input_of), (True, False)),
        "disk.keep_done_bytes": Effect(10**9, 0, of_an_earlier_job(input_of), (True, False)),
        "disk.retention_days": Effect(0, 1e-9, of_an_earlier_job(results_of), (True, False)),
        "disk.prune_outbox_s": Effect(0, 1e-3, of_an_earlier_job(results_of), (True, False)),
        "disk.min_free_bytes": Effect(0, 10**17, space, (True, False)),
        "disk.min_free_inodes": Effect(0, 10**15, space, (True, False)),
        "limits.open_jobs": Effect(0, 1, jobs_at_a_time, (2, 1)),
        "limits.open_bytes": Effect(0, 100, jobs_at_a_time, (2, 1)),
        "limits.open_requests": Effect(0, 2, jobs_at_a_time, (2, 1)),
    },
    {"inbox.rescan_s": 0.1},
)
SERVING = Scene(
    {
        "models.allow": Effect(["*"], ["tiny", "drop*"], model_of_its_own, ({}, {"model_forbidden": 1})),
        "models.pull": Effect("allowed", "never", model_to_pull, ({}, {"model_not_found": 1})),
        "models.pull_margin_bytes": Effect(0, 10**17, model_to_pull, ({}, {"no_space": 1})),
        "alarms.command": Effect([], TELL, alarm_is_told, (False, True), {"alarms.on": ["job_done"]}),
        "alarms.on": Effect(["disk_low"], ["job_done"], alarm_is_told, (False, True), {"alarms.command": TELL}),
        "alarms.timeout_s": Effect(
            30, 0.1, late_alarm_is_told, (True, False), {"alarms.command": TELL_LATE, "alarms.on": ["job_done"]}
        ),
        "log_level": Effect("info", "error", is_logged, (True, False)),
    },
)
