"""``obatchctl jobs``, ``job``, ``cancel``, ``retry``, ``pause`` and ``resume``."""

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
@click.option("--state", type=click.Choice(["running", "publishing", "done", "refused"]), help="Only those.")
@click.option("--mine", "owner", flag_value="mine", help="Only your own.")
@click.option("--all", "owner", flag_value="all", help="Those of every owner; for administrators.")
@click.option("--label", metavar="TEXT", help="Only those with this label.")
@click.option("--since", type=Since(), metavar="TIME", help="Only those accepted in the last 3d, or from a date on.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")
@click.option("--watch", is_flag=True, help="Show them again and again, until Ctrl-C.")
@click.option("--interval", default="1s", show_default=True, type=Span(0.1), metavar="TIME", help="For --watch.")
def jobs_command(
    invocation: Invocation,
    /,
    state: str | None,
    owner: str | None,
    watch: bool,
    interval: float,
    **wanted: Any,
) -> None:
    """List jobs with progress, speed and failures, newest first: an administrator's list has everybody's."""
    look = partial(invocation.client().get, "jobs", state=state, owner=owner, **wanted)
    if watch:
        show_again(invocation, interval, look, _list)
    invocation.answer(look(), view=_list)


def _list(document: Document) -> list[str]:
    return job_table(document["jobs"]) if document["jobs"] else ["No jobs."]


@click.command("job", cls=Command, help=f"Everything about one job.\n\n{NAMED}")
@_one_job
def job_command(invocation: Invocation, job_id: str) -> None:
    invocation.answer(invocation.client().get("jobs", job_id), view=_page)


def _page(job: Document) -> Iterator[str]:
    for key, value in job.items():
        if key not in ("schema", "notes") and value is not None:
            yield f"{key:<18}{clean({True: 'yes', False: 'no'}[value] if isinstance(value, bool) else value)}"
    yield from (f"note: {clean(note)}" for note in job["notes"] or [])


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


def _one_or_all(action: str, about: str, done: str) -> click.Command:
    @click.command(action, cls=Command, help=about)
    @one_job("[JOB]", needed=False)
    def act(invocation: Invocation, job_id: str | None) -> None:
        target = ("jobs", job_id, action) if job_id else (action,)
        invocation.answer(invocation.client().post(*target), f"{job_id or 'All jobs'} {done}.")

    return act


pause_command = _one_or_all(
    "pause", "Send no more requests of JOB, or of any job; what is in flight finishes.", "paused"
)
resume_command = _one_or_all("resume", "Go on after pause.", "resumed")
