"""``obatchctl jobs``, ``job``, ``cancel``, ``retry``, ``rm``, ``pause`` and ``resume``."""

from __future__ import annotations

from functools import partial

import click

from obatchd.cli.command import Command, Document, Invocation, given
from obatchd.cli.commands.completion import known
from obatchd.cli.commands.usage import SUMS_STAY
from obatchd.cli.views.job import doubts, page
from obatchd.cli.views.status import job_table
from obatchd.cli.views.waiting import watch as show_again

_DOUBTS_SHOWN = 5
_ids = known("jobs", "job")
_one_job = click.argument("job_id", metavar="JOB", callback=given, shell_complete=_ids)


@click.command("jobs", cls=Command)
@click.option("--state", type=click.Choice(["running", "publishing", "done", "refused"]), help="Only those.")
@click.option("--mine", "owner", flag_value="mine", help="Only your own.")
@click.option("--all", "owner", flag_value="all", help="Those of every owner; for administrators.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")
@click.option("--watch", is_flag=True, help="Show them again and again, until Ctrl-C.")
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.1), help="Seconds, for --watch.")
def jobs_command(
    invocation: Invocation, state: str | None, owner: str | None, limit: int, watch: bool, interval: float
) -> None:
    """List jobs with progress, speed and failures, newest first: an administrator's list has everybody's."""
    look = partial(invocation.client().get, "jobs", state=state, owner=owner, limit=limit)
    if watch:
        show_again(invocation, interval, look, _list)
    invocation.answer(look(), view=_list)


def _list(document: Document) -> list[str]:
    jobs = document["jobs"]
    lines = [line for job in jobs for line in doubts(job)]
    more = [f"… and {len(lines) - _DOUBTS_SHOWN} more lines; obatchctl job JOB has them"] * (len(lines) > _DOUBTS_SHOWN)
    return [*job_table(jobs), *lines[:_DOUBTS_SHOWN], *more] if jobs else ["No jobs."]


@click.command("job", cls=Command)
@_one_job
def job_command(invocation: Invocation, job_id: str) -> None:
    """Everything about one job. JOB is an id or its beginning."""
    invocation.answer(invocation.client().get("jobs", job_id), view=page)


@click.command("cancel", cls=Command)
@_one_job
def cancel_command(invocation: Invocation, job_id: str) -> None:
    """Cancel what is not finished of a job; what is finished stays in its outbox."""
    job = invocation.client().post("jobs", job_id, "cancel")
    invocation.answer(job, f"{job['job']} cancelled; results: {job['outbox']}")


@click.command("retry", cls=Command)
@_one_job
def retry_command(invocation: Invocation, job_id: str) -> None:
    """Make a new job from the requests of JOB that did not succeed."""
    job = invocation.client().post("jobs", job_id, "retry")
    invocation.answer(job, f"{job['job']} tries again what failed in {job_id}")


@click.command("rm", cls=Command)
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True, callback=given, shell_complete=_ids)
def rm_command(invocation: Invocation, job_ids: tuple[str, ...]) -> None:
    """Erase jobs that are over: results, prompts and every trace in the daemon's files. Cannot be undone.

    The sums of obatchctl usage stay: they name an owner and a month, and no job.
    """
    removed = [invocation.client().delete("jobs", job_id)["removed"] for job_id in job_ids]
    invocation.answer({"removed": removed}, *(f"{job} erased" for job in removed), SUMS_STAY)


def _one_or_all(action: str, about: str, done: str) -> click.Command:
    @click.command(action, cls=Command, help=about)
    @click.argument("job_id", metavar="[JOB]", required=False, callback=given, shell_complete=_ids)
    def act(invocation: Invocation, job_id: str | None) -> None:
        target = ("jobs", job_id, action) if job_id else (action,)
        invocation.answer(invocation.client().post(*target), f"{job_id or 'All jobs'} {done}.")

    return act


pause_command = _one_or_all(
    "pause", "Send no more requests of JOB, or of any job; what is in flight finishes.", "paused"
)
resume_command = _one_or_all("resume", "Go on after pause.", "resumed")
