"""``obatchctl audit``: who did what to keys, GPUs, servers, models and the work of others."""

from __future__ import annotations

import click

from obatchd.cli.command import Command, Document, Invocation, Since, clean
from obatchd.cli.views.text import NOTHING, table
from obatchd.naming import user_name
from obatchd.words import counted


@click.command("audit", cls=Command)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000), help="The latest N of them.")
@click.option("--since", "since_s", type=Since(), metavar="TIME", help="From then on: 7d ago, or 2026-11-23.")
@click.option("--until", "until_s", type=Since(), metavar="TIME", help="Before then.")
@click.option(
    "--kind", "kinds", multiple=True, metavar="KIND",
    help="Only those: key, session, gpu, job, file, server, model, burnin, host, or one as key_added; also twice.",
)  # fmt: skip
def audit_command(
    invocation: Invocation, limit: int, since_s: float | None, until_s: float | None, kinds: tuple[str, ...]
) -> None:
    """Show who did what to keys, GPUs and jobs of others.

    Servers, models, burn-ins and the whole daemon are in it, too; the oldest comes first. For administrators.
    """
    client = invocation.client()
    document = client.get("audit", limit=limit, since=since_s, until=until_s, kind=",".join(kinds) or None)
    if not invocation.json:
        for told in _told(document):
            click.echo(told, err=True)
    invocation.answer(document, view=_lines)


def _told(document: Document) -> list[str]:
    """What is to be known of the log itself."""
    told = [clean(document["problem"])] if document["problem"] else []
    if lines := document["unreadable"]:
        told.append(f"{counted(lines, 'line')} of the log cannot be read: a crash or a full disk may leave half of one")
    return told


def _lines(document: Document) -> list[str]:
    rows = [
        (
            f"{entry['at'].partition('.')[0]}Z", _who(entry["uid"], entry["user"]), entry["kind"],
            entry["target"] or None, _owner(entry), _origin(entry), _outcome(entry),
        )
        for entry in document["entries"]
    ]  # fmt: skip
    if not rows:
        return ["Nothing is recorded."]
    return table(("AT", "WHO", "WHAT", "TARGET", "?OF", "FROM", "~DETAIL"), rows)


def _who(uid: int, name: str) -> str:
    """The name as it was then, and the uid, which may have got another one since."""
    return f"{name} ({uid})" if name and name != str(uid) else str(uid)


def _owner(entry: Document) -> str:
    return user_name(entry["owner"]) if "owner" in entry else NOTHING


def _origin(entry: Document) -> str:
    found = entry["door"]
    found += f" {entry['address']}" if "address" in entry else ""
    found += f" pid {entry['pid']}" if "pid" in entry else ""
    if "key" in entry:
        found += f" {entry['key']}" + (f" ({entry['key_label']})" if "key_label" in entry else "")
    return str(found)


def _outcome(entry: Document) -> str | None:
    said = [entry.get("detail", ""), f"failed: {entry['failed']}" if "failed" in entry else ""]
    return "; ".join(filter(None, said)) or None
