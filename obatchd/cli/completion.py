"""``obatchctl completion``."""

from __future__ import annotations

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
    invocation.answer({"shell": shell, "script": source}, lambda: click.echo(source))
