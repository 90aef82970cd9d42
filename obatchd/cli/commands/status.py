"""``obatchctl status``."""

from __future__ import annotations

import sys
from functools import partial

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Command, Invocation
from obatchd.cli.views.status import render
from obatchd.cli.views.watching import watch as show_again


@click.command("status", cls=Command)
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C; with --json, one document a line.")
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.1), help="Seconds, for --watch.")
def status_command(invocation: Invocation, watch: bool, interval: float) -> None:
    """Servers, queue, inbox and jobs. Exit code 0 healthy, 1 degraded, 3 not running, 4 unknown."""
    look = partial(invocation.client().get, "status")
    if watch:
        show_again(invocation, interval, look, render)
    status = look()
    invocation.answer(status, view=render)
    sys.exit(exit_codes.FAILED if status["state"] == "degraded" else exit_codes.OK)
