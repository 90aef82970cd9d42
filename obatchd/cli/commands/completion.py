"""``obatchctl completion``, and the daemon's names that can be completed: jobs, servers, models, GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from obatchd.cli.command import Command, Invocation, clean
from obatchd.cli.views.text import gpu_name
from obatchd.errors import ObatchError

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(invocation: Invocation, shell: str) -> None:
    """Print a completion script for a shell. To use it:  eval "$(obatchctl completion bash)"."""
    source = script(click.get_current_context().find_root().command, shell)
    invocation.answer({"shell": shell, "script": source}, view=lambda _: [source])


def script(main: click.Command, shell: str) -> str:
    """The completion script of ``obatchctl`` for one of click's shells."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    return complete(main, {}, "obatchctl", "_OBATCHCTL_COMPLETE").source()


def known(what: str, *keys: str, about: str = "", answer: str = "") -> Complete:
    """Completes with the entries that the daemon lists at ``what``, in ``answer`` or else under the same name.

    Of each entry it offers the first of ``keys`` that begins with the typed text, with ``about`` as its description
    where the shell shows one (zsh, fish); an entry whose description begins so is offered, too.
    """

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from obatchd.client.control import ControlClient

        try:
            document = ControlClient(Path(os.path.expanduser(ctx.find_root().params["spool"])).absolute()).get(what)
        except ObatchError:  # nothing, because the user is only typing
            return []
        found = []
        for entry in document[answer or what]:
            values, words = [str(entry[key]) for key in keys], clean(entry.get(about) or "")
            if what == "gpus":
                values[0] = gpu_name(entry)
            typed = [value for value in values if value.startswith(incomplete)]
            if typed or (words and words.startswith(incomplete)):
                found.append(CompletionItem((typed or values)[0], help=words or None))
        return found

    return complete


jobs = known("jobs", "job", about="name")
models = known("models", "model")
gpus = known("gpus", "index", "uuid", about="name")
hosts = known("hosts", "name", about="state")
burnin_runs = known("burnin", "run", about="state", answer="runs")


def listed(complete: Complete) -> Complete:
    """Completes the last of several values with commas between."""

    def complete_last(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        named = before.split(",")
        found = complete(ctx, parameter, last)
        return [CompletionItem(f"{before}{comma}{i.value}", help=i.help) for i in found if i.value not in named]

    return complete_last
