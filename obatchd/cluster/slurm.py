"""A file for sbatch: a pilot job of Slurm, which runs ``obatchd host`` on each of its nodes.

The file holds no secret: it names a file of mode 0600 that has the enrolment. What the job does then is ``pilot.sh``,
the same for all; in front of it stand sbatch's options and the variables that this module writes.
"""

from __future__ import annotations

import re
import shlex
from importlib.resources import files
from pathlib import Path

import msgspec

from obatchd.errors import ClusterError
from obatchd.times import span_s

SHORTEST_S = 60.0  # Slurm counts limits in minutes
_NODES = re.compile(r"[1-9][0-9]{0,5}(-[1-9][0-9]{0,5})?")
# What sbatch's own parser of the lines takes as it stands: it has quotes, escapes and comments of its own (sbatch(1)).
_PLAIN = re.compile(r"[A-Za-z0-9_.,:;=@+/%()\[\]&|*!~^-]+")
_OPTION = re.compile(r"--[a-z][a-z0-9-]*(=.*)?", re.DOTALL)
_OURS = {
    "array", "error", "input", "job-name", "no-kill", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "output",
    "requeue", "signal", "time", "wrap",
}  # fmt: skip
_LIMIT = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


class HeadInJob(msgspec.Struct, frozen=True):
    """The head of the hosts, where it is to run on the first node of the same job."""

    spool: Path
    obatchctl: Path
    config: Path | None = None  # None: where the head looks by itself
    port: int = 7700
    valid: str = "7d"  # of the enrolment that it makes


class PilotJob(msgspec.Struct, frozen=True):
    """What is to be asked of Slurm, and the paths that are in force on the nodes."""

    nodes: str  # a number, or "least-most"
    obatchd: Path
    enrolment: Path
    directory: Path  # in it each host has one, by job and node
    config: Path | None = None  # of each host; None: where it looks by itself
    gres: str = ""
    partition: str = ""
    limit_s: float | None = None  # None: the partition's
    notice_s: float = 120.0  # before the limit, when hosts take no more work
    name: str = "obatch-hosts"
    log: str = ""  # of sbatch's --output; empty: a name in the current directory
    apart: bool = False  # a job of its own for each node
    renew: bool = False  # at its time limit it goes back to the queue
    options: tuple[str, ...] = ()  # more of sbatch's, as --key=value
    head: HeadInJob | None = None


def limit_s(text: str) -> float:
    """Seconds of a time limit as Slurm writes it, ``12:00:00`` or ``1-12``, or as we do: ``12h``.

    Raises ClusterError, also for a plain number, which means minutes to Slurm and seconds to us.
    """
    said = text.strip()
    if re.fullmatch(r"\d+", said):
        raise _refused(f"--time {said}: {said} what? Write {said}m for minutes, {said}h for hours")
    if found := _LIMIT.fullmatch(said):
        parts = [int(part) for part in (found["first"], found["second"], found["third"]) if part is not None]
        if found["days"] is None and len(parts) == 2:
            parts.insert(0, 0)  # minutes:seconds, where no day stands in front
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return int(found["days"] or 0) * 86400.0 + hours * 3600.0 + minutes * 60.0 + seconds
    try:
        return span_s(said)
    except ValueError:
        raise _refused(f"--time {text}: no time limit; write 12:00:00, 1-12:00:00, 90m or 12h") from None


def sbatch_file(job: PilotJob) -> str:
    """The whole file. Raises ClusterError where something cannot stand in one; the message names the option."""
    _check(job)
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in _options(job))]
    lines += ["", *_story(job), "", *(f"{name}={shlex.quote(value)}" for name, value in _variables(job).items())]
    return "\n".join(lines) + "\n\n" + files("obatchd.cluster").joinpath("pilot.sh").read_text("utf-8")


def _options(job: PilotJob) -> list[str]:
    options = [f"--job-name={job.name}", "--ntasks-per-node=1", f"--signal=B:USR1@{round(job.notice_s)}", "--requeue"]
    # One node that fails is not the end of the others; it comes back with the job, or alone where each is a job.
    options += [f"--array=1-{job.nodes}", "--nodes=1"] if job.apart else [f"--nodes={job.nodes}", "--no-kill"]
    options += [f"--gres={job.gres}"] if job.gres else []
    options += [f"--partition={job.partition}"] if job.partition else []
    options += [f"--time={_slurm_time(job.limit_s)}"] if job.limit_s is not None else []
    log = job.log or f"{job.name}-{'%A_%a' if job.apart else '%j'}.log"
    return [*options, f"--output={log}", "--open-mode=append", *job.options]


def _story(job: PilotJob) -> list[str]:
    nodes = f"Each of {job.nodes} jobs" if job.apart else "This job"
    lines = [f"# {nodes} runs obatchd host on its nodes, which work for {'its own' if job.head else 'their'} head."]
    if job.head is None:
        lines += [f"# The enrolment is in {_inline(job.enrolment)}, which only its owner may read; here is no secret."]
    return [*lines, "# Made by obatchctl cluster slurm; submit it with sbatch, end it with scancel."]


def _variables(job: PilotJob) -> dict[str, str]:
    head = job.head
    return {
        "obatchd": str(job.obatchd),
        "enrolment": str(job.enrolment),
        "directory": str(job.directory),
        "host_config": str(job.config or ""),
        "renew": "yes" if job.renew else "",
        "spool": str(head.spool) if head else "",
        "head_config": str(head.config or "") if head else "",
        "port": str(head.port) if head else "",
        "valid": head.valid if head else "",
        "obatchctl": str(head.obatchctl) if head else "",
    }


def _check(job: PilotJob) -> None:
    if not _NODES.fullmatch(job.nodes):
        raise _refused(f"--nodes {_inline(job.nodes)}: write a number of nodes, such as 7, or a range: 2-7")
    least, _, most = job.nodes.partition("-")
    if most and int(most) < int(least):
        raise _refused(f"--nodes {job.nodes}: the first number is larger than the second")
    if job.apart and most:
        raise _refused(f"--apart makes a job for each node, and needs their number: --nodes {most}")
    if job.apart and job.head:
        raise _refused("--apart and --with-head exclude each other: the head needs one job, whose first node it is on")
    if job.limit_s is not None and job.limit_s < max(SHORTEST_S, job.notice_s):
        raise _refused(
            f"--time {_slurm_time(job.limit_s)} is too short: at least a minute, and more than --notice "
            f"({round(job.notice_s)} s)"
        )
    for name, value in (("--gres", job.gres), ("--partition", job.partition), ("--name", job.name), ("--log", job.log)):
        _need_plain(name, value)
    for option in job.options:
        _check_option(option)
    for path in _paths(job):
        if not path.is_absolute() or "\n" in str(path):
            raise _refused(f"{_inline(path)}: needs to be a whole path, without a line break")


def _paths(job: PilotJob) -> list[Path]:
    head = (job.head.spool, job.head.obatchctl, job.head.config) if job.head else ()
    return [path for path in (job.obatchd, job.enrolment, job.directory, job.config, *head) if path is not None]


def _check_option(option: str) -> None:
    if not _OPTION.fullmatch(option):
        raise _refused(f"--sbatch {_inline(option)}: write one of sbatch's long options, such as --sbatch=--mem=64G")
    _need_plain("--sbatch", option)
    if (name := option[2:].partition("=")[0]) in _OURS:
        raise _refused(f"--sbatch {option}: the file has --{name} already; use the options of obatchctl for it")


def _need_plain(name: str, value: str) -> None:
    if value and not _PLAIN.fullmatch(value):
        raise _refused(
            f"{name} {_inline(value)}: spaces, quotes, backslashes, # and $ cannot stand in sbatch's own lines; put "
            "such a value on the command line of sbatch"
        )


def _refused(message: str) -> ClusterError:
    return ClusterError(message, code="slurm_job")


def _inline(value: object) -> str:
    return str(value).replace("\n", " ").replace("\r", " ")


def _slurm_time(seconds: float) -> str:
    """``D-HH:MM:SS``, which every Slurm takes."""
    whole = round(seconds)
    return f"{whole // 86400}-{whole // 3600 % 24:02}:{whole // 60 % 60:02}:{whole % 60:02}"
