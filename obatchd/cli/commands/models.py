"""``obatchctl models``."""

from __future__ import annotations

import sys

import click

from obatchd.cli.command import Document, Group, Invocation, clean
from obatchd.cli.commands.completion import known
from obatchd.cli.views.text import bar, size, table

models_command = Group("models", "List, pull and remove models.", lists=True)
_one_model = click.argument("name", shell_complete=known("models", "model"))


@models_command.command("list")
def list_command(invocation: Invocation) -> None:
    """The models in the store."""
    invocation.answer(invocation.client().get("models"), view=_list)


def _list(document: Document) -> list[str]:
    rows = [
        (
            model["model"],
            size(model.get("size_bytes")),
            model.get("parameter_size"),
            model.get("quantization"),
            (model.get("digest") or "–").removeprefix("sha256:")[:12],
        )
        for model in document["models"]
    ]
    if not rows:
        return ["No models. obatchctl models pull NAME gets one."]
    return table(("MODEL", ">SIZE", "PARAMETERS", "QUANTIZATION", "DIGEST"), rows)


@models_command.command("pull")
@_one_model
def pull_command(invocation: Invocation, name: str) -> None:
    """Get a model into the store."""
    last: Document = {"model": name, "status": ""}
    shown = sys.stderr.isatty() and not invocation.json
    for progress in invocation.client().pull(name):
        last = progress
        if shown:
            _show(progress)
    if shown:
        click.echo(err=True)
    invocation.answer(last, f"{name}: {last['status'] or 'done'}")


def _show(progress: Document) -> None:
    done, total = progress.get("completed_bytes") or 0, progress.get("total_bytes")
    line = f"{bar(done, total)}  {size(done)} / {size(total)}  {clean(progress['status'])}"
    click.echo(f"\r\x1b[K{line}", err=True, nl=False)


@models_command.command("rm")
@_one_model
def rm_command(invocation: Invocation, name: str) -> None:
    """Delete a model from the store."""
    invocation.answer(invocation.client().delete("models", name), f"{name} removed.")
