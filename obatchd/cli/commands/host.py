"""``obatchctl drain``, ``undrain`` and ``reload``: the whole host."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Command, Invocation, clean, pass_invocation
from obatchd.errors import ControlError

_POLL_S = 0.3


@click.command("drain", cls=Command)
@click.option("--wait", is_flag=True, help="Return when nothing is in flight any more.")
@pass_invocation
def drain_command(invocation: Invocation, wait: bool) -> None:
    """Send nothing to any server until undrain. Afterwards the host is safe to reboot: what waits is on disk."""
    client = invocation.client()
    client.post("drain")
    status = client.get("status")
    try:
        while wait and status["state"] != "drained":
            if status["state"] != "draining" and status["state"] != "degraded":
                raise ControlError(f"draining was ended: the state is {status['state']}", code="not_draining")
            time.sleep(_POLL_S)
            status = client.get("status")
    except KeyboardInterrupt:
        click.echo("Still draining; obatchctl undrain ends it.", err=True)
        sys.exit(exit_codes.INTERRUPTED)
    drained = status["state"] == "drained"
    text = "Drained: safe to reboot." if drained else "Draining; obatchctl status says when it is drained."
    invocation.answer({"state": status["state"]}, lambda: click.echo(text))


@click.command("undrain", cls=Command)
@pass_invocation
def undrain_command(invocation: Invocation) -> None:
    """Take up work again after drain."""
    document = invocation.client().post("undrain")
    invocation.answer(document, lambda: click.echo("Work goes on."))


@click.command("reload", cls=Command)
@pass_invocation
def reload_command(invocation: Invocation) -> None:
    """Make the daemon read its configuration again; a wrong one changes nothing."""
    document = invocation.client().post("reload")
    invocation.answer(document, lambda: _print_reload(document))


def _print_reload(document: dict[str, Any]) -> None:
    next_job, waiting = document["next_job"], document["needs_restart"]
    at_once = [key for key in document["changed"] if key not in next_job]
    if at_once:
        click.echo(f"Changed: {clean(', '.join(at_once))}")
    if next_job:
        click.echo(f"Changed for jobs accepted from now on: {clean(', '.join(next_job))}")
    if waiting:
        click.echo(f"Needs a restart of the daemon: {clean(', '.join(waiting))}")
    if not at_once and not next_job and not waiting:
        click.echo("Nothing has changed.")
