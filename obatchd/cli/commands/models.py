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
    return f"{host}:{port}" if store.startswith("remote-") and host and ".." not in host else store


@models_command.command("pull")
@_one_model
def pull_command(invocation: Invocation, name: str) -> None:
    """Get a model into the store, and into that of each joined host."""
    last: Document = {"model": name, "status": ""}
    stores: dict[str, Document] = {}  # the latest of each, by the server that pulls into it
    try:
        for last in invocation.client().pull(name):
            stores[last.get("server", "")] = last
            if not invocation.json:
                line_anew(_progress(list(stores.values()), last))
    finally:  # an error has a line of its own
        if not invocation.json:
            line_anew("")
    invocation.answer(last, f"{name}: {last['status'] or 'done'}")


def _progress(stores: list[Document], last: Document) -> str:
    """How far a download is, into all stores that it goes to."""
    done, total = (sum(store.get(name) or 0 for store in stores) for name in ("completed_bytes", "total_bytes"))
    words = clean(last["status"])
    if len(stores) > 1:
        words = f"{sum(bool(store.get('done')) for store in stores)} of {len(stores)} hosts have it"
    return f"{bar(done, total)}  {size(done)} / {size(total)}  {words}"


@models_command.command("rm")
@_one_model
def rm_command(invocation: Invocation, name: str) -> None:
    """Delete a model from the store, and from that of each joined host."""
    invocation.answer(invocation.client().delete("models", name), f"{name} removed.")
