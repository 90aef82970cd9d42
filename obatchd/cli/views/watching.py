"""Showing a document of the daemon again and again: ``status --watch`` and ``jobs --watch``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Never

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Document, Invocation, View, clean
from obatchd.errors import DaemonDownError

# Of a terminal (ECMA-48, xterm): its second screen, so that nothing of the first is lost; no flicker by erasing late.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _ERASE_LINE, _ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[K\x1b[J"


def watch(invocation: Invocation, interval_s: float, look: Callable[[], Document], view: View) -> Never:
    """Show the document of ``look`` every ``interval_s`` until Ctrl-C; with ``--json``, one document a line."""
    try:
        if invocation.json or not sys.stdout.isatty():
            while True:
                invocation.answer(look(), view=view)
                time.sleep(interval_s)
        _full_screen(interval_s, look, view)
    except KeyboardInterrupt:
        sys.exit(exit_codes.OK)


def _full_screen(interval_s: float, look: Callable[[], Document], view: View) -> Never:
    click.echo(_ENTER, nl=False)
    try:
        while True:
            try:
                lines = [*view(look())]
            except DaemonDownError as error:  # it may come back
                lines = [clean(error.message)]
            room = os.get_terminal_size(sys.stdout.fileno()).lines or len(lines)
            click.echo(_HOME + f"{_ERASE_LINE}\n".join(lines[:room]) + _ERASE_BELOW, nl=False)
            time.sleep(interval_s)
    finally:
        click.echo(_LEAVE, nl=False)
