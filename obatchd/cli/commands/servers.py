"""``obatchctl servers``."""

from __future__ import annotations

import sys

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Document, Group, Invocation
from obatchd.cli.commands.completion import known
from obatchd.cli.views.status import server_table, state_of_server
from obatchd.cli.views.tuning import tuning_page

_TUNING = "Show how many slots were tried, how fast servers were with them, and which number is used."
servers_command = Group(
    "servers",
    "List servers, take one out of service, bring it back.",
    lists=True,
    options=[click.Option(["--tuning"], is_flag=True, help=_TUNING)],
)
_ELSEWHERE = "; it runs elsewhere and goes on there, obatchd only connects to it again"
_one_server = click.argument("server_id", metavar="SERVER", shell_complete=known("servers", "id"))


@servers_command.command("list")
@click.option("--tuning", is_flag=True, help=_TUNING)
def list_command(invocation: Invocation, tuning: bool) -> None:
    """List the servers with their states."""
    if tuning:
        invocation.answer(invocation.client().get("servers/tuning"), view=tuning_page)
        return
    invocation.answer(invocation.client().get("servers"), view=lambda document: server_table(document["servers"]))


@servers_command.command("logs")
@_one_server
@click.option(
    "-n",
    "--lines",
    default=200,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="How many lines, the latest ones.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on as the server writes more, until Ctrl-C.")
def logs_command(invocation: Invocation, server_id: str, lines: int, follow: bool) -> None:
    """Show what the Ollama of a server writes; for administrators. With --json one document a line."""
    try:
        for document in invocation.client().server_log(server_id, lines, follow=follow):
            invocation.answer(document, document["line"])
    except KeyboardInterrupt:
        sys.exit(exit_codes.OK)


def _add(action: str, about: str) -> None:
    @servers_command.command(action, help=about)
    @_one_server
    def act(invocation: Invocation, server_id: str) -> None:
        server = invocation.client().post("servers", server_id, action)
        there = action == "restart" and server["kind"] == "remote"
        rest = _ELSEWHERE if there else _drained(server) if action == "drain" else ""
        invocation.answer(server, f"{server['id']}: {state_of_server(server)}{rest}")


def _drained(server: Document) -> str:
    """What a drain means for the server, and how long it lasts."""
    lasts = f"until obatchctl servers resume {server['id']}, or until obatchd restarts"
    if server["state"] == "draining":
        return f"; it gets no new requests {lasts}"
    return f" ({server['reason']}); when it is back it gets no requests {lasts}"


_add("drain", "Give a server no more work; running requests finish. It ends with resume, or when obatchd restarts.")
_add("resume", "Take a drained or failed server into service again.")
_add(
    "restart",
    "Stop a server and start it anew. Its running requests finish first. To one that runs elsewhere obatchd only "
    "connects again.",
)
