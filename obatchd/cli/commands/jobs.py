"""``obatchctl jobs``, ``job``, ``cancel``, ``pause``, ``resume`` and ``usage``."""

from __future__ import annotations

import shlex
from datetime import datetime
from functools import partial
from typing import Any

import click

from obatchd.cli.command import Command, Document, Invocation, Since, Span, clean
from obatchd.cli.named import NAMED, one_job
from obatchd.cli.views.job import doubts, page, waits, why
from obatchd.cli.views.status import job_state, job_table
from obatchd.cli.views.text import place, table
from obatchd.cli.views.waiting import watch as show_again
from obatchd.client.control import ControlClient
from obatchd.words import counted

# What erasing a job leaves behind.
SUMS_STAY = "The sums of obatchctl usage stay: they name an owner and a month, and no job."
_SUM_HEADINGS = (
    "~OWNER", "MONTH", ">DONE", "?>FAILED", "?>CANCELLED", "?>EXPIRED", ">PROMPT TOKENS", ">ANSWER TOKENS",
    ">GPU-SECONDS", "?>KWH",
)  # fmt: skip
_DOUBTS_SHOWN = 5
_MOST, _USUAL = 10_000, 100  # jobs in a list of the daemon
# Every word of the column STATE, and the state in which the daemon knows such jobs.
_STATES = {state: state for state in ("running", "publishing", "done", "refused")} | {
    "waiting": "running", "paused": "running", "cancelling": "running", "failed": "done", "cancelled": "done",
    "expired": "done",
}  # fmt: skip
_one_job = one_job()


@click.command("jobs", cls=Command)
@click.option(
    "--state", type=click.Choice(tuple(_STATES)), help="Only jobs in this state; done: over, however they ended."
)
@click.option("--mine", "owner", flag_value="mine", help="Only your own jobs.")
@click.option("--all", "owner", flag_value="all", help="Jobs of every owner; for administrators.")
@click.option("--label", metavar="TEXT", help="Only jobs with this label.")
@click.option("--since", type=Since(), metavar="TIME", help="Only jobs accepted in the last 3d, or from a date on.")
@click.option("--after", metavar="ID", help="Only jobs older than this one: the next part of a long list.")
@click.option("--limit", default=_USUAL, show_default=True, type=click.IntRange(1, _MOST), help="How many at most.")
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
    limit: int,
    **wanted: Any,
) -> None:
    """List jobs with progress, speed and failures, newest first. An administrator's list has everybody's."""
    look = partial(_look, invocation.client(), state, limit, owner=owner, **wanted)
    view = partial(_list, again=_again(state, owner, limit, **wanted))
    if watch:
        show_again(invocation, interval, look, view)
    invocation.answer(look(), view=view)


def _look(client: ControlClient, state: str | None, limit: int, **wanted: Any) -> Document:
    """The jobs that are wanted; of a word that the daemon does not know as a state, those that show it."""
    known = _STATES.get(state or "")
    if known == state or not state:
        return client.get("jobs", state=state, limit=limit, **wanted)
    document = client.get("jobs", state=known, limit=_MOST, **wanted)
    shown = [job for job in document["jobs"] if job_state(job).split()[0] == state]
    older = shown[limit - 1]["job"] if len(shown) > limit else document.get("next")
    return {**document, "jobs": shown[:limit], "next": older}


def _again(state: str | None, owner: str | None, limit: int, label: str | None, since: float | None, **_: Any) -> str:
    """The same command, but for where its list begins."""
    words = ["obatchctl", "jobs", *([f"--{owner}"] if owner else ())]
    options = {"--state": state, "--label": label, "--limit": None if limit == _USUAL else str(limit)}
    options["--since"] = None if since is None else datetime.fromtimestamp(since).isoformat(timespec="minutes")
    return shlex.join([*words, *(word for name, one in options.items() if one is not None for word in (name, one))])


def _list(document: Document, again: str = "obatchctl jobs") -> list[str]:
    jobs = document["jobs"]
    lines = [line for job in jobs for line in (*waits(job), *doubts(job))]
    left = counted(len(lines) - _DOUBTS_SHOWN, "more line")
    more = [f"… and {left}; obatchctl job JOB shows them"] * (len(lines) > _DOUBTS_SHOWN)
    if (last := document.get("next")) is not None:
        more.append(f"older jobs:  {clean(again)} --after {clean(last)}")
    return [*job_table(jobs), *lines[:_DOUBTS_SHOWN], *more] if jobs else ["No jobs."]


@click.command("job", cls=Command, help=f"Show everything about one job.\n\n{NAMED}")
@_one_job
@click.option("--failures", is_flag=True, help="Only why requests have no answer; also while it runs.")
def job_command(invocation: Invocation, job_id: str, failures: bool) -> None:
    if failures:
        invocation.answer(invocation.client().get("jobs", job_id, "failures"), view=why)
    else:
        invocation.answer(invocation.client().get("jobs", job_id), view=page)


@click.command("cancel", cls=Command)
@_one_job
def cancel_command(invocation: Invocation, job_id: str) -> None:
    """Cancel the requests of a job that are not finished. Finished answers stay in its outbox."""
    job = invocation.client().post("jobs", job_id, "cancel")
    invocation.answer(job, f"{job['job']} cancelled; results: {place(job['outbox'])}")


def _one_or_all(action: str, about: str, done: str) -> click.Command:
    @click.command(action, cls=Command, help=about)
    @one_job("[JOB]", needed=False)
    def act(invocation: Invocation, job_id: str | None) -> None:
        target = ("jobs", job_id, action) if job_id else (action,)
        document = invocation.client().post(*target)
        told, held_up = f"{document.get('job') or 'All jobs'} {done}", document.get("held_up")
        goes_on_waiting = action == "resume" and held_up
        invocation.answer(document, clean(f"{told}, and still waiting: {held_up}" if goes_on_waiting else f"{told}."))

    return act


pause_command = _one_or_all("pause", "Send no more requests of JOB, or of any job. Running requests finish.", "paused")
resume_command = _one_or_all("resume", "Go on with JOB, or with every job, after pause.", "resumed")


def _month(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return datetime.strptime(value, "%Y-%m").strftime("%Y-%m")
    except ValueError:
        raise click.BadParameter(f"{value!r} is no month; write it as 2026-11") from None


@click.command("usage", cls=Command)
@click.option("--month", metavar="YYYY-MM", callback=_month, help="Only this month (UTC).")
@click.option("--mine", "owner", flag_value="mine", help="Only your own sums.")
def usage_command(invocation: Invocation, month: str | None, owner: str | None) -> None:
    """Sum requests, tokens, GPU-seconds and energy by owner.

    An administrator sees everybody's sums. A job counts in the month in which it ends. While an answer is made, it
    counts its slot's share of the server's GPUs: on one GPU with four slots, a quarter of the time. The
    energy (KWH, where there is room) is that of GPUs, as far as they tell it. The sums name no job, and stay when jobs
    are erased.
    """
    invocation.answer(invocation.client().get("usage", month=month, owner=owner), view=_sums)


def _kilowatt_hours(energy_j: float) -> str:
    kilowatt_hours = energy_j / 3.6e6
    return f"{kilowatt_hours:,.3f}" if kilowatt_hours >= 0.001 else "below 0.001" if energy_j else ""


def _sums(document: Document) -> list[str]:
    rows = [
        [
            row["name"], row["month"], f"{row['succeeded']:,}",
            *(f"{row[name]:,}" if row[name] else "" for name in ("failed", "cancelled", "expired")),
            f"{row['prompt_tokens']:,}", f"{row['response_tokens']:,}", f"{row['gpu_s']:,.0f}",
            _kilowatt_hours(row.get("energy_j") or 0.0),
        ]
        for row in document["usage"]
    ]  # fmt: skip
    return table(_SUM_HEADINGS, rows) if rows else ["No job has ended in that time."]
