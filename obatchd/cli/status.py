"""``obatchctl status``."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Command, Invocation, clean, pass_invocation
from obatchd.errors import DaemonDownError

# Of a terminal (ECMA-48, xterm): its second screen, so that nothing of the first is lost; no flicker by erasing late.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _ERASE_LINE, _ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[K\x1b[J"


@click.command("status", cls=Command)
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C; with --json, one document a line.")
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.1), help="Seconds, for --watch.")
@pass_invocation
def status_command(invocation: Invocation, watch: bool, interval: float) -> None:
    """Servers, queue, inbox and jobs. Exit code 0 healthy, 1 degraded, 3 not running, 4 unknown."""
    if watch:
        _watch(invocation, interval)
        return
    status = invocation.client().get("status")
    invocation.answer(status, lambda: _print(status))
    sys.exit(exit_codes.FAILED if status["state"] == "degraded" else exit_codes.OK)


def _print(status: dict[str, Any]) -> None:
    from obatchd.cli.status_view import render

    click.echo("\n".join(render(status)))


def _watch(invocation: Invocation, interval_s: float) -> None:
    try:
        if invocation.json or not sys.stdout.isatty():
            while True:
                status = invocation.client().get("status")
                invocation.answer(status, lambda shown=status: _print(shown))  # type: ignore[misc]
                time.sleep(interval_s)
        _full_screen(invocation, interval_s)
    except KeyboardInterrupt:
        sys.exit(exit_codes.OK)


def _full_screen(invocation: Invocation, interval_s: float) -> None:
    from obatchd.cli.status_view import render

    click.echo(_ENTER, nl=False)
    try:
        while True:
            try:
                lines = render(invocation.client().get("status"))
            except DaemonDownError as error:  # it may come back
                lines = [clean(error.message)]
            room = os.get_terminal_size(sys.stdout.fileno()).lines or len(lines)
            click.echo(_HOME + f"{_ERASE_LINE}\n".join(lines[:room]) + _ERASE_BELOW, nl=False)
            time.sleep(interval_s)
    finally:
        click.echo(_LEAVE, nl=False)
