"""``obatchctl completion``, and the daemon's names that can be completed: jobs, servers, models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from obatchd.cli.command import Command, Invocation
from obatchd.errors import ObatchError


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(invocation: Invocation, shell: str) -> None:
    """Print a completion script, e.g.  eval "$(obatchctl completion bash)"."""
    source = script(click.get_current_context().find_root().command, shell)
    invocation.answer({"shell": shell, "script": source}, view=lambda _: [source])


def script(main: click.Command, shell: str) -> str:
    """The completion script of ``obatchctl`` for one of click's shells."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    return complete(main, {}, "obatchctl", "_OBATCHCTL_COMPLETE").source()


def known(what: str, key: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completes the ``key`` of the entries that the daemon lists under ``what``."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        from obatchd.client.client import Client

        try:
            listed = Client(Path(os.path.expanduser(ctx.find_root().params["spool"])).absolute()).get(what)[what]
        except ObatchError:  # nothing, because the user is only typing
            return []
        return [str(entry[key]) for entry in listed if str(entry[key]).startswith(incomplete)]

    return complete
