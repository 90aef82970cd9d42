"""``obatchctl key``: keys for programs that speak to the API over HTTP."""

from __future__ import annotations

import click

from obatchd.cli.command import Document, Group, Invocation, Span
from obatchd.cli.views.text import NOTHING, table
from obatchd.naming import user_name

key_command = Group("key", "Make, list and remove keys of programs.", lists=True)
_DAY_S = 86400.0
_METRICS = ["metrics"]


@key_command.command("add")
@click.option("--label", default="", metavar="TEXT", help="What it is for.")
@click.option("--expires", "expires_s", type=Span(60, with_unit=True), metavar="TIME", help="It is good so long: 90d.")
@click.option(
    "--scope", "scopes", multiple=True, metavar="SCOPE",
    help="What it is good for: batches, inference or metrics; may be given again. Without it, batches and inference.",
)  # fmt: skip
@click.option("--admin", is_flag=True, help="It sees everything, as an administrator; only they can make one.")
def add_command(
    invocation: Invocation, label: str, expires_s: float | None, scopes: tuple[str, ...], admin: bool
) -> None:
    """Make a key that acts as you. It is shown this once; one for metrics alone without words around it."""
    asked: Document = {"label": label, "administrator": admin}
    asked |= {"days": expires_s / _DAY_S} if expires_s is not None else {}
    asked |= {"scopes": list(scopes)} if scopes else {}
    made = invocation.client().post("keys", body=asked)
    invocation.answer(made, *_told(invocation, made))
    if not invocation.json:
        words = f"Key {made['about']['id']}. It cannot be shown again; obatchctl key rm {made['about']['id']} ends it."
        click.echo(words, err=True)


def _told(invocation: Invocation, made: Document) -> list[str]:
    """What a shell evaluates for programs; Prometheus reads the key from a file that has nothing else."""
    if made["about"]["scopes"] == _METRICS:
        return [made["key"]]
    door = invocation.client().get("status").get("http")
    where = [f"export OPENAI_BASE_URL=http{'s' if door['tls'] else ''}://{door['address']}/v1"] if door else []
    return [*where, f"export OPENAI_API_KEY={made['key']}"]


@key_command.command("list")
def list_command(invocation: Invocation) -> None:
    """List your keys; administrators see everybody's."""
    invocation.answer(invocation.client().get("keys"), view=_list)


def _list(document: Document) -> list[str]:
    if not document["keys"]:
        return ["No keys. obatchctl key add makes one."]
    rows = [
        (
            key["id"], user_name(key["owner"]), key["label"] or None, ", ".join(_scopes(key)), _day(key["created_at"]),
            _day(key["expires_at"]), _day(key["last_used_at"]),
        )
        for key in document["keys"]
    ]  # fmt: skip
    return table(("KEY", "OWNER", "~LABEL", "GOOD FOR", "MADE", "?EXPIRES", "LAST USED"), rows)


def _scopes(key: Document) -> list[str]:
    return [*key["scopes"], *(["everything of others"] if key["administrator"] else [])]


def _day(instant: str | None) -> str:
    return instant[:10] if instant else NOTHING


@key_command.command("rm")
@click.argument("key", metavar="KEY")
def rm_command(invocation: Invocation, key: str) -> None:
    """Remove a key; whoever uses it at this moment is cut off."""
    removed = invocation.client().delete("keys", key)
    invocation.answer(removed, f"{removed['removed']} removed.")
