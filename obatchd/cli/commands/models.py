"""``obatchctl models``."""

from __future__ import annotations

import click

from obatchd.cli.command import Document, Group, Invocation, clean
from obatchd.cli.commands.completion import models
from obatchd.cli.views.text import NOTHING, bar, size, table
from obatchd.cli.views.waiting import line_anew

models_command = Group("models", "List, pull and remove models.", lists=True)
_one_model = click.argument("name", shell_complete=models)


@models_command.command("list")
def list_command(invocation: Invocation) -> None:
    """List the models in the store."""
    document, rows = invocation.client().get("models"), []
    for model in document["models"]:
        digest = (model.get("digest") or NOTHING).removeprefix("sha256:")[:12]
        facts = [model.get(name) for name in ("parameter_size", "quantization")]
        rows.append([model["model"], size(model.get("size_bytes")), *facts, digest])
    listed = table(("MODEL", ">SIZE", "PARAMETERS", "QUANTIZATION", "DIGEST"), rows)
    lines = listed if rows else ["No models. obatchctl models pull NAME gets one."]
    invocation.answer(document, view=lambda _: lines)


@models_command.command("pull")
@_one_model
def pull_command(invocation: Invocation, name: str) -> None:
    """Get a model into the store."""
    last: Document = {"model": name, "status": ""}
    for last in invocation.client().pull(name):
        if not invocation.json:
            done, total = last.get("completed_bytes") or 0, last.get("total_bytes")
            line_anew(f"{bar(done, total)}  {size(done)} / {size(total)}  {clean(last['status'])}")
    if not invocation.json:
        line_anew("")
    invocation.answer(last, f"{name}: {last['status'] or 'done'}")


@models_command.command("rm")
@_one_model
def rm_command(invocation: Invocation, name: str) -> None:
    """Delete a model from the store."""
    invocation.answer(invocation.client().delete("models", name), f"{name} removed.")
