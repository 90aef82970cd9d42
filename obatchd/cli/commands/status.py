"""``obatchctl status``."""

from __future__ import annotations

import sys
from typing import Any

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Command, Invocation, pass_invocation


@click.command("status", cls=Command)
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C; with --json, one document a line.")
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.1), help="Seconds, for --watch.")
@pass_invocation
def status_command(invocation: Invocation, watch: bool, interval: float) -> None:
    """Servers, queue, inbox and jobs. Exit code 0 healthy, 1 degraded, 3 not running, 4 unknown."""
    if watch:
        from obatchd.cli.views import watching

        watching.watch(invocation, interval, lambda: invocation.client().get("status"), _lines)
        return
    status = invocation.client().get("status")
    invocation.answer(status, lambda: click.echo("\n".join(_lines(status))))
    sys.exit(exit_codes.FAILED if status["state"] == "degraded" else exit_codes.OK)


def _lines(status: dict[str, Any]) -> list[str]:
    from obatchd.cli.views.status import render

    return render(status)
