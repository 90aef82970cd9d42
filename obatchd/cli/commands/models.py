"""``obatchctl models``."""

from __future__ import annotations

import click

from obatchd.cli.command import Document, Group, Invocation, clean
from obatchd.cli.commands.completion import models
from obatchd.cli.views.text import NOTHING, bar, size, table
from obatchd.cli.views.waiting import line_anew

models_command = Group("models", "List, pull and remove models.", lists=True)
_LOCAL = "local"  # the store of the servers that obatchd starts
_one_model = click.argument("name", shell_complete=models)


@models_command.command("list")
def list_command(invocation: Invocation) -> None:
    """List the models, and who has them where servers run elsewhere."""
    invocation.answer(invocation.client().get("models"), view=_list)


def _list(document: Document) -> list[str]:
    stores: dict[tuple[object, ...], list[str]] = {}  # that have the same model, by its cells
    for model in document["models"]:
        digest = (model.get("digest") or NOTHING).removeprefix("sha256:")[:12]
        facts = [model.get(name) for name in ("parameter_size", "quantization")]
        row = (model["model"], size(model.get("size_bytes")), *facts, digest)
        stores.setdefault(row, []).append(model.get("store", _LOCAL))
    if not stores:
        return ["No models. obatchctl models pull NAME gets one."]
    # Where one name means two models, nothing but the digest tells them apart.
    one = len({row[0] for row in stores}) == len(stores)
    headings = ("MODEL", "?>SIZE", "?PARAMETERS", "?QUANTIZATION", "?DIGEST" if one else "DIGEST")
    if all(store == _LOCAL for found in stores.values() for store in found):
        return table(headings, stores)
    names = (", ".join(map(_host, found)) for found in stores.values())
    return table((*headings, "~~WHO HAS IT"), ([*row, name] for row, name in zip(stores, names, strict=True)))


def _host(store: str) -> str:
    """The host of a store, as short as a command takes it."""
    if store == _LOCAL:
        return "this host"
    host, _, port = store.removeprefix("remote-").rpartition("-")
    return f"{host}:{port}" if host and ".." not in host else store


@models_command.command("pull")
@_one_model
def pull_command(invocation: Invocation, name: str) -> None:
    """Get a model into the store."""
    last: Document = {"model": name, "status": ""}
    try:
        for last in invocation.client().pull(name):
            if not invocation.json:
                done, total = last.get("completed_bytes") or 0, last.get("total_bytes")
                line_anew(f"{bar(done, total)}  {size(done)} / {size(total)}  {clean(last['status'])}")
    finally:  # an error has a line of its own
        if not invocation.json:
            line_anew("")
    invocation.answer(last, f"{name}: {last['status'] or 'done'}")


@models_command.command("rm")
@_one_model
def rm_command(invocation: Invocation, name: str) -> None:
    """Delete a model from the store."""
    invocation.answer(invocation.client().delete("models", name), f"{name} removed.")
