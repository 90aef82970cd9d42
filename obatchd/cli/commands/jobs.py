"""``obatchctl jobs``, ``job``, ``cancel``, ``pause`` and ``resume``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import click

from obatchd.cli.command import Command, Document, Invocation, Since, Span, clean
from obatchd.cli.named import NAMED, one_job
from obatchd.cli.views.status import job_table
from obatchd.cli.views.waiting import watch as show_again

_one_job = one_job()


@click.command("jobs", cls=Command)
@click.option(
    "--state", type=click.Choice(["running", "publishing", "done", "refused"]), help="Only jobs in this state."
)
@click.option("--mine", "owner", flag_value="mine", help="Only your own jobs.")
@click.option("--all", "owner", flag_value="all", help="Jobs of every owner; for administrators.")
@click.option("--label", metavar="TEXT", help="Only jobs with this label.")
@click.option("--since", type=Since(), metavar="TIME", help="Only jobs accepted in the last 3d, or from a date on.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000), help="How many at most.")
@click.option("--watch", is_flag=True, help="Show them again and again, until Ctrl-C.")
@click.option(
    "--interval",
    default="1s",
    show_default=True,
    type=Span(0.1),
    metavar="TIME",
    help="The pause between two looks.",
)
def jobs_command(
    invocation: Invocation,
    /,
    state: str | None,
    owner: str | None,
    watch: bool,
    interval: float,
    **wanted: Any,
) -> None:
    """List jobs with progress, speed and failures, newest first. An administrator's list has everybody's."""
    look = partial(invocation.client().get, "jobs", state=state, owner=owner, **wanted)
    if watch:
        show_again(invocation, interval, look, _list)
    invocation.answer(look(), view=_list)


def _list(document: Document) -> list[str]:
    return job_table(document["jobs"]) if document["jobs"] else ["No jobs."]


@click.command("job", cls=Command, help=f"Show everything about one job.\n\n{NAMED}")
@_one_job
def job_command(invocation: Invocation, job_id: str) -> None:
    invocation.answer(invocation.client().get("jobs", job_id), view=_page)


def _page(job: Document) -> Iterator[str]:
    for key, value in job.items():
        value = ", ".join(value) if isinstance(value, list) else value
        if key not in ("schema", "notes") and value is not None:
            yield f"{key:<18}{clean({True: 'yes', False: 'no'}[value] if isinstance(value, bool) else value)}"
    yield from (f"note: {clean(note)}" for note in job["notes"] or [])


@click.command("cancel", cls=Command)
@_one_job
def cancel_command(invocation: Invocation, job_id: str) -> None:
    """Cancel the requests of a job that are not finished. Finished answers stay in its outbox."""
    job = invocation.client().post("jobs", job_id, "cancel")
    invocation.answer(job, f"{job['job']} cancelled; results: {job['outbox']}")


def _one_or_all(action: str, about: str, done: str) -> click.Command:
    @click.command(action, cls=Command, help=about)
    @one_job("[JOB]", needed=False)
    def act(invocation: Invocation, job_id: str | None) -> None:
        target = ("jobs", job_id, action) if job_id else (action,)
        invocation.answer(invocation.client().post(*target), f"{job_id or 'All jobs'} {done}.")

    return act


pause_command = _one_or_all("pause", "Send no more requests of JOB, or of any job. Running requests finish.", "paused")
resume_command = _one_or_all("resume", "Go on with JOB, or with every job, after pause.", "resumed")
