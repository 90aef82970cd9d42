"""``obatchctl rm``: erasing jobs, after a question where it was not said exactly which."""

from __future__ import annotations

import sys
import time

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Command, Document, Invocation, Span, clean, given
from obatchd.cli.commands.completion import jobs
from obatchd.cli.commands.jobs import SUMS_STAY
from obatchd.cli.named import is_last, last, latest
from obatchd.cli.views.status import job_state
from obatchd.cli.views.text import table
from obatchd.client.control import ControlClient
from obatchd.errors import ControlError, DaemonDownError, ObatchError
from obatchd.words import counted

_SHOWN = 20  # jobs of a question
_TOGETHER = 200  # jobs erased at a time, for which each file of the store is written anew once
_MOST = 10_000  # jobs in a list of the daemon
_OVER = ("done", "refused")
_MORE = (
    f"One call erases at most {_MOST:,} jobs that are done and {_MOST:,} that were refused. If there are more, give "
    "the command again."
)


@click.command("rm", cls=Command)
@click.argument("job_ids", metavar="[JOB]...", nargs=-1, callback=given, shell_complete=jobs)
@last
@click.option(
    "--older-than", "older_s", type=Span(with_unit=True), metavar="TIME",
    help="Jobs of yours that ended so long ago: 30d.",
)  # fmt: skip
@click.option("--label", metavar="TEXT", help="Jobs of yours that are over and have this label.")
@click.option(
    "--all", "everybodys", is_flag=True, help="With --older-than or --label, jobs of every owner; for administrators."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm_command(
    invocation: Invocation,
    /,
    job_ids: tuple[str, ...],
    older_s: float | None,
    label: str | None,
    everybodys: bool,
    yes: bool,
) -> None:
    """Erase jobs that are over, with every trace of them.

    Results and prompts go, too; that cannot be undone. Whole ids are erased at once. Anything else that may name a
    job (its beginning, its label, the name of the drop …), --last and --older-than show what would go, and ask.
    """
    chosen = older_s is not None or label is not None
    if everybodys and not chosen:
        raise click.UsageError("--all goes with --older-than or --label")
    if not (job_ids or chosen or is_last()):
        raise click.UsageError("name a JOB, or give --last, --older-than or --label")
    client = invocation.client()
    names = [*job_ids, *([latest(client)] if is_last() else [])]
    named = {job["job"]: job for job in (client.get("jobs", name) for name in names)}
    before = None if older_s is None else time.time() - older_s
    old, more = _over(invocation, label, before, everybodys) if chosen else ({}, False)
    if not (named | old):
        invocation.answer({"removed": []}, "There is no such job that is over; nothing was erased.")
        return
    if not yes and (old or is_last() or set(named) != set(job_ids)):
        _ask(invocation, list((named | old).values()), more)
    removed, kept = _erase(client, list(named))
    ids = [job for job in old if job not in named]
    for place in range(0, len(ids), _TOGETHER):
        answer = client.remove(ids[place : place + _TOGETHER])
        removed += answer["removed"]
        kept |= answer["kept"]
    told = [*(f"{job} erased" for job in removed), *([SUMS_STAY] * bool(removed)), *([_MORE] * more)]
    invocation.answer({"removed": removed, "kept": kept, "more": more}, *told)
    if kept:
        click.echo("\n".join(clean(f"{job} was not erased: {reason}") for job, reason in kept.items()), err=True)
        sys.exit(exit_codes.FAILED)


def _erase(client: ControlClient, named: list[str]) -> tuple[list[str], dict[str, str]]:
    """Erase one after the other, as each may have to end first; those that went, and why others stayed."""
    removed, kept = list[str](), dict[str, str]()
    for job in named:
        try:
            removed.append(client.delete("jobs", job)["removed"])
        except ObatchError as error:
            if len(named) == 1:
                raise
            kept[job] = error.message  # what went before it is told all the same
            if isinstance(error, DaemonDownError):
                break
    return removed, kept


def _over(
    invocation: Invocation, label: str | None, before_s: float | None, everybodys: bool
) -> tuple[dict[str, Document], bool]:
    """Jobs that are over, by id; the latest of them, and True, where there may be more than a list may have."""
    owner = "all" if everybodys else "mine"
    wanted = {"owner": owner, "label": label, "ended_before": before_s, "limit": _MOST}
    lists = [invocation.client().get("jobs", state=state, **wanted)["jobs"] for state in _OVER]
    return {job["job"]: job for jobs in lists for job in jobs}, any(len(jobs) >= _MOST for jobs in lists)


def _ask(invocation: Invocation, jobs: list[Document], more_left: bool) -> None:
    """Show what would go, and go on only when somebody says yes."""
    if invocation.json or not sys.stdin.isatty():
        ids = ", ".join(job["job"] for job in jobs[:_SHOWN])
        more = f" and {len(jobs) - _SHOWN:,} more" if len(jobs) > _SHOWN else ""
        raise click.UsageError(f"this would erase {ids}{more}; nobody can be asked here: give --yes, or whole ids")
    over = [job for job in jobs if job["state"] in _OVER]
    if len(over) < len(jobs):
        running = next(job["job"] for job in jobs if job["state"] not in _OVER)
        raise ControlError(
            f"job {running} is not over; cancel it first: obatchctl cancel {running}", code="job_running"
        )
    rows = [
        (job["job"], job["name"], job.get("label"), job_state(job), job["requests"], _day(job)) for job in jobs[:_SHOWN]
    ]
    lines = table(("JOB", "~NAME", "~LABEL", "STATE", ">REQUESTS", "ENDED"), rows)
    lines += [f"… and {len(jobs) - _SHOWN:,} more"] if len(jobs) > _SHOWN else []
    lines += [_MORE] * more_left
    click.echo("\n".join(lines))
    count = counted(len(jobs), "job")
    try:
        if click.confirm(f"Erase {count}, with results and prompts? This cannot be undone.", default=False):
            return
    except click.Abort:
        click.echo()
    click.echo("Nothing was erased.", err=True)
    sys.exit(exit_codes.FAILED)


def _day(job: Document) -> str | None:
    """The day on which a job ended."""
    return str(job["finished_at"])[:10] if job["finished_at"] else None
