"""``obatchctl completion``, and what the daemon knows that can be completed: jobs, servers, models."""

from __future__ import annotations

from pathlib import Path

import click

from obatchd.cli.command import Command, Invocation, pass_invocation


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
@pass_invocation
def completion_command(invocation: Invocation, ctx: click.Context, shell: str) -> None:
    """Print a completion script, e.g.  eval "$(obatchctl completion bash)"."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None  # one of the three above
    source = complete(ctx.find_root().command, {}, "obatchctl", "_OBATCHCTL_COMPLETE").source()
    invocation.answer({"shell": shell, "script": source}, view=lambda _: [source])


def job_ids(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Ids of jobs, newest first."""
    return _known(ctx, "jobs", "job", incomplete)


def server_ids(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Ids of servers."""
    return _known(ctx, "servers", "id", incomplete)


def model_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of models in the store."""
    return _known(ctx, "models", "model", incomplete)


def _known(ctx: click.Context, what: str, key: str, incomplete: str) -> list[str]:
    """What the daemon lists under ``what``; nothing when it cannot be asked, because the user is only typing."""
    from obatchd.client.client import Client
    from obatchd.errors import ObatchError

    try:
        listed = Client(Path(ctx.find_root().params["spool"]).expanduser().absolute()).get(what)[what]
    except ObatchError:
        return []
    return [str(entry[key]) for entry in listed if str(entry[key]).startswith(incomplete)]
