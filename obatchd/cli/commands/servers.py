"""``obatchctl servers``."""

from __future__ import annotations

import sys

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Group, Invocation, pass_invocation
from obatchd.cli.commands.completion import known
from obatchd.cli.views.status import server_table

_one_server = click.argument("server_id", metavar="SERVER", shell_complete=known("servers", "id"))


@click.group("servers", cls=Group, invoke_without_command=True)
@click.pass_context
def servers_command(ctx: click.Context) -> None:
    """List servers, take one out of service, bring it back."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command)


@servers_command.command("list")
@pass_invocation
def list_command(invocation: Invocation) -> None:
    """The servers and what they do."""
    invocation.answer(invocation.client().get("servers"), view=lambda document: server_table(document["servers"]))


def _act(invocation: Invocation, server_id: str, action: str) -> None:
    server = invocation.client().post("servers", server_id, action)
    invocation.answer(server, f"{server['id']}: {server['state']}")


@servers_command.command("logs")
@_one_server
@click.option("-n", "--lines", default=200, show_default=True, type=click.IntRange(1, 10_000), help="The last so many.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes, until Ctrl-C.")
@pass_invocation
def logs_command(invocation: Invocation, server_id: str, lines: int, follow: bool) -> None:
    """What a server's ollama writes; for administrators. With --json one document a line."""
    try:
        for document in invocation.client().server_log(server_id, lines, follow=follow):
            invocation.answer(document, document["line"])
    except KeyboardInterrupt:
        sys.exit(exit_codes.OK)


@servers_command.command("drain")
@_one_server
@pass_invocation
def drain_command(invocation: Invocation, server_id: str) -> None:
    """Give a server no more work; what is in flight finishes."""
    _act(invocation, server_id, "drain")


@servers_command.command("resume")
@_one_server
@pass_invocation
def resume_command(invocation: Invocation, server_id: str) -> None:
    """Take a drained or failed server into service again."""
    _act(invocation, server_id, "resume")


@servers_command.command("restart")
@_one_server
@pass_invocation
def restart_command(invocation: Invocation, server_id: str) -> None:
    """Drain a server, stop it and start it anew."""
    _act(invocation, server_id, "restart")
