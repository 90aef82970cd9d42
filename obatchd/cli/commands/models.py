"""``obatchctl models``."""

from __future__ import annotations

import sys
from typing import Any

import click

from obatchd.cli.command import Group, Invocation, clean, pass_invocation
from obatchd.cli.commands.completion import model_names


@click.group("models", cls=Group, invoke_without_command=True)
@click.pass_context
def models_command(ctx: click.Context) -> None:
    """List, pull and remove models."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command)


@models_command.command("list")
@pass_invocation
def list_command(invocation: Invocation) -> None:
    """The models in the store."""
    document = invocation.client().get("models")
    invocation.answer(document, lambda: _print(document["models"]))


def _print(models: list[dict[str, Any]]) -> None:
    if not models:
        click.echo("No models. obatchctl models pull NAME gets one.")
        return
    from obatchd.cli.views.text import size, table

    rows = [
        (
            model["model"],
            size(model.get("size_bytes")),
            model.get("parameter_size"),
            model.get("quantization"),
            (model.get("digest") or "–").removeprefix("sha256:")[:12],
        )
        for model in models
    ]
    click.echo("\n".join(table(("MODEL", ">SIZE", "PARAMETERS", "QUANTIZATION", "DIGEST"), rows)))


@models_command.command("pull")
@click.argument("name", shell_complete=model_names)
@pass_invocation
def pull_command(invocation: Invocation, name: str) -> None:
    """Get a model into the store."""
    last: dict[str, Any] = {"model": name, "status": ""}
    shown = sys.stderr.isatty() and not invocation.json
    for progress in invocation.client().pull(name):
        last = progress
        if shown:
            _show(progress)
    if shown:
        click.echo(err=True)
    invocation.answer(last, lambda: click.echo(f"{clean(name)}: {clean(last['status'] or 'done')}"))


def _show(progress: dict[str, Any]) -> None:
    from obatchd.cli.views.text import bar, size

    done, total = progress.get("completed_bytes") or 0, progress.get("total_bytes")
    line = f"{bar(done, total)}  {size(done)} / {size(total)}  {clean(progress['status'])}"
    click.echo(f"\r\x1b[K{line}", err=True, nl=False)


@models_command.command("rm")
@click.argument("name", shell_complete=model_names)
@pass_invocation
def rm_command(invocation: Invocation, name: str) -> None:
    """Delete a model from the store."""
    from obatchd.client.client import quoted

    document = invocation.client().delete(f"models/{quoted(name)}")
    invocation.answer(document, lambda: click.echo(f"{clean(name)} removed."))
