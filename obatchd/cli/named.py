"""The JOB of every command that takes one: what may be typed, and ``--last``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from obatchd.cli.command import Invocation, given
from obatchd.cli.commands.completion import jobs
from obatchd.client.control import ControlClient
from obatchd.errors import NotFoundError

NAMED = (
    "JOB is an id or its beginning or end, a label, the name of the drop with or without its ending, a date such as "
    "2026-11-23 (in UTC, as in ids), or a folder of the outbox. Where several jobs fit, they are listed."
)
_Command = TypeVar("_Command", bound=Callable[..., Any])
_LAST = f"{__name__}.last"


def latest(client: ControlClient) -> str:
    """The id of the caller's latest job. Raises NotFoundError where there is none."""
    jobs = client.get("jobs", owner="mine", limit=1)["jobs"]
    if not jobs:
        raise NotFoundError("you have no job yet; obatchctl submit PATH makes one")
    return str(jobs[0]["job"])


def one_job(metavar: str = "JOB", *, needed: bool = True, name: str = "job_id") -> Callable[[_Command], _Command]:
    """The argument JOB, and ``--last`` in place of it; where it is not ``needed``, None is given without either."""

    def chosen(ctx: click.Context, parameter: click.Parameter, typed: str | None) -> str | None:
        given(ctx, parameter, typed)
        if ctx.meta.get(_LAST):
            if typed is not None:
                raise click.UsageError("give JOB or --last, not both", ctx)
            return latest(ctx.ensure_object(Invocation).client())
        if typed is None and needed:
            raise click.MissingParameter(ctx=ctx, param=parameter)
        return typed

    def decorate(command: _Command) -> _Command:
        argument = click.argument(name, metavar=metavar, required=False, callback=chosen, shell_complete=jobs)
        return argument(last(command))

    return decorate


def last(command: _Command) -> _Command:
    """The option ``--last`` alone; :func:`is_last` tells whether it was given."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[_LAST] = value

    about = "Your latest job, in place of JOB."
    return click.option("--last", is_flag=True, is_eager=True, expose_value=False, callback=remember, help=about)(
        command
    )


def is_last() -> bool:
    """Whether the command in progress was given ``--last``."""
    return bool(click.get_current_context().meta.get(_LAST))
