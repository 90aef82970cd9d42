"""``obatchctl jobs``, ``job``, ``cancel``, ``retry``, ``rm``, ``pause`` and ``resume``."""

from __future__ import annotations

from typing import Any

import click

from obatchd.cli.command import Command, Invocation, clean, given, pass_invocation
from obatchd.cli.commands.completion import job_ids

_one_job = click.argument("job_id", metavar="JOB", callback=given, shell_complete=job_ids)
_job_or_all = click.argument("job_id", metavar="[JOB]", required=False, callback=given, shell_complete=job_ids)


@click.command("jobs", cls=Command)
@click.option("--state", type=click.Choice(["running", "publishing", "done", "refused"]), help="Only those.")
@click.option("--mine", "owner", flag_value="mine", help="Only your own.")
@click.option("--all", "owner", flag_value="all", help="Those of every owner; for administrators.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")
@click.option("--watch", is_flag=True, help="Show them again and again, until Ctrl-C.")
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.1), help="Seconds, for --watch.")
@pass_invocation
def jobs_command(
    invocation: Invocation, state: str | None, owner: str | None, limit: int, watch: bool, interval: float
) -> None:
    """List jobs with progress, speed and failures, newest first: an administrator's list has everybody's."""

    def look() -> dict[str, Any]:
        return invocation.client().get("jobs", state=state, owner=owner, limit=limit)

    if watch:
        from obatchd.cli.views import watching

        watching.watch(invocation, interval, look, _lines)
        return
    document = look()
    invocation.answer(document, lambda: click.echo("\n".join(_lines(document))))


def _lines(document: dict[str, Any]) -> list[str]:
    from obatchd.cli.views.status import job_table

    return job_table(document["jobs"]) if document["jobs"] else ["No jobs."]


@click.command("job", cls=Command)
@_one_job
@pass_invocation
def job_command(invocation: Invocation, job_id: str) -> None:
    """Everything about one job. JOB is an id or its beginning."""
    job = _job(invocation, job_id)
    invocation.answer(job, lambda: _print_job(job))


def _print_job(job: dict[str, Any]) -> None:
    for key, value in job.items():
        if key in ("schema", "notes") or value is None:
            continue
        click.echo(f"{key:<18}{clean({True: 'yes', False: 'no'}[value] if isinstance(value, bool) else value)}")
    for note in job["notes"] or []:
        click.echo(f"note: {clean(note)}")


def _job(invocation: Invocation, job_id: str) -> dict[str, Any]:
    from obatchd.client.client import quoted

    return invocation.client().get(f"jobs/{quoted(job_id)}")


def _act(invocation: Invocation, job_id: str | None, action: str) -> dict[str, Any]:
    from obatchd.client.client import quoted

    return invocation.client().post(f"jobs/{quoted(job_id)}/{action}" if job_id else action)


@click.command("cancel", cls=Command)
@_one_job
@pass_invocation
def cancel_command(invocation: Invocation, job_id: str) -> None:
    """Cancel what is not finished of a job; what is finished stays in its outbox."""
    job = _act(invocation, job_id, "cancel")
    invocation.answer(job, lambda: click.echo(f"{job['job']} cancelled; results: {clean(job['outbox'])}"))


@click.command("retry", cls=Command)
@_one_job
@pass_invocation
def retry_command(invocation: Invocation, job_id: str) -> None:
    """Make a new job from the requests of JOB that did not succeed."""
    job = _act(invocation, job_id, "retry")
    invocation.answer(job, lambda: click.echo(f"{job['job']} tries again what failed in {clean(job_id)}"))


@click.command("rm", cls=Command)
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True, callback=given, shell_complete=job_ids)
@pass_invocation
def rm_command(invocation: Invocation, job_ids: tuple[str, ...]) -> None:
    """Erase jobs that are over: results, prompts and every trace in the daemon's files. Cannot be undone."""
    from obatchd.client.client import quoted

    client = invocation.client()
    removed = [client.delete(f"jobs/{quoted(job_id)}")["removed"] for job_id in job_ids]
    invocation.answer({"removed": removed}, lambda: click.echo("\n".join(f"{job} erased" for job in removed)))


@click.command("pause", cls=Command)
@_job_or_all
@pass_invocation
def pause_command(invocation: Invocation, job_id: str | None) -> None:
    """Send no more requests of JOB, or of any job; what is in flight finishes."""
    document = _act(invocation, job_id, "pause")
    invocation.answer(document, lambda: click.echo(f"{clean(job_id or 'All jobs')} paused."))


@click.command("resume", cls=Command)
@_job_or_all
@pass_invocation
def resume_command(invocation: Invocation, job_id: str | None) -> None:
    """Go on after pause."""
    document = _act(invocation, job_id, "resume")
    invocation.answer(document, lambda: click.echo(f"{clean(job_id or 'All jobs')} resumed."))
