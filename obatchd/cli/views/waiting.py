"""Asking the daemon again and again: ``--watch``, and ``submit --wait``, which shows progress until jobs are over."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Never, TypeVar

import click

from obatchd import terminal
from obatchd.cli import exit_codes
from obatchd.cli.command import Document, Invocation, View, clean
from obatchd.cli.views.job import waits
from obatchd.cli.views.status import finished
from obatchd.client.progress import speed
from obatchd.errors import DaemonDownError

_POLL_S = 0.5
_LINE_S = 30.0  # between two lines where there is no terminal to draw on
DOWN_S = 120.0  # a daemon that is being restarted is waited for
_TIME = re.compile(r" \([^()]*next try at .*?\)")
_T = TypeVar("_T")
_OVER = ("done", "refused")
_BELOW = 2  # lines below a view that is shown again and again
# Of a terminal (ECMA-48, xterm): its second screen, so that nothing of the first is lost; no flicker by erasing late.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _ERASE_LINE, _ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[K\x1b[J"


def wait(look: Callable[[], list[Document]], *, quiet: bool) -> list[Document]:
    """The jobs' last documents, once all are over; on a terminal with a bar for each, else with a line now and then."""
    if quiet:
        return _until_over(look, lambda jobs: None)
    return _with_bars(look) if terminal.draws(sys.stderr) else _with_lines(look)


def over_restarts(ask: Callable[[], _T]) -> _T:
    """The answer of ``ask``; while the daemon is being restarted, it is asked again.

    Raises DaemonDownError where the daemon stays away for two minutes, or the caller may not talk to it.
    """
    down_since_s: float | None = None
    while True:
        try:
            return ask()
        except DaemonDownError as error:
            if error.code == "permission" or (down_since_s and time.monotonic() - down_since_s > DOWN_S):
                raise
            if down_since_s is None:
                down_since_s = time.monotonic()
                click.echo(f"obatchd does not answer; waiting {DOWN_S:.0f} s for it to come back.", err=True)
            time.sleep(_POLL_S)


def _until_over(look: Callable[[], list[Document]], show: Callable[[list[Document]], None]) -> list[Document]:
    while True:
        jobs = over_restarts(look)
        show(jobs)
        if all(job["state"] in _OVER for job in jobs):
            return jobs
        time.sleep(_POLL_S)


class _Reasons:
    """Why jobs wait, told once for each reason."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told: dict[str, str] = {}  # by job

    def look(self, jobs: list[Document]) -> None:
        for job in jobs:
            reason = job.get("held_up") or ""
            # The time to the next try is another one each time.
            if reason and _TIME.sub("", reason) != self._told.get(job["job"]):
                self._told[job["job"]] = _TIME.sub("", reason)
                for line in waits(job):
                    self._tell(line)


def _with_lines(look: Callable[[], list[Document]]) -> list[Document]:
    next_s = time.monotonic() + _LINE_S
    reasons = _Reasons(partial(click.echo, err=True))

    def show(jobs: list[Document]) -> None:
        nonlocal next_s
        reasons.look(jobs)
        if time.monotonic() < next_s:
            return
        next_s = time.monotonic() + _LINE_S
        for job in jobs:
            of = f"{job['requests']:,}" if job["requests"] is not None else f"{job['indexed']:,} or more"
            click.echo(clean(f"{job['job']}  {finished(job):,} of {of}  {speed(job)}"), err=True)

    return _until_over(look, show)


def _with_bars(look: Callable[[], list[Document]]) -> list[Document]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    text = partial(TextColumn, markup=False)
    columns = (text("{task.description}"), BarColumn(), MofNCompleteColumn(), text("{task.fields[speed]}"))
    with Progress(*columns, console=Console(stderr=True, no_color=not terminal.coloured(sys.stderr))) as progress:
        tasks = {job["job"]: progress.add_task(clean(job["name"]), total=None, speed="") for job in look()}

        reasons = _Reasons(lambda line: progress.console.print(Text.from_ansi(line)))

        def show(jobs: list[Document]) -> None:
            reasons.look(jobs)
            for job in jobs:
                task = tasks[job["job"]]
                progress.update(task, completed=finished(job), total=job["requests"], speed=speed(job))

        return _until_over(look, show)


def watch(invocation: Invocation, interval_s: float, look: Callable[[], Document], view: View) -> Never:
    """Show the document of ``look`` every ``interval_s`` until Ctrl-C; with ``--json``, one document a line."""
    full_screen = terminal.draws(sys.stdout) and not invocation.json
    try:
        if full_screen:
            _control(_ENTER)
        while True:
            if full_screen:
                _draw(look, view)
            else:
                invocation.answer(look(), view=view)
            time.sleep(interval_s)
    except KeyboardInterrupt:
        sys.exit(exit_codes.OK)
    finally:
        if full_screen:
            _control(_LEAVE)


def screen_lines() -> int | None:
    """So many lines of a view fit into the terminal; None: there is none, or it does not tell."""
    try:
        lines = os.get_terminal_size(sys.stdout.fileno()).lines
    except (OSError, ValueError):
        return None
    return max(lines - _BELOW, 1) if lines else None


def _draw(look: Callable[[], Document], view: View) -> None:
    try:
        lines = [*view(look())]
    except DaemonDownError as error:  # it may come back
        lines = [clean(error.message)]
    room = (screen_lines() or len(lines)) + _BELOW
    lines = [*lines[: max(room - _BELOW, 1)], "", click.style("Ctrl-C ends this view.", dim=True)]
    shown = lines[:room] if terminal.coloured(sys.stdout) else map(click.unstyle, lines[:room])
    _control(_HOME + f"{_ERASE_LINE}\n".join(shown) + _ERASE_BELOW)


def _control(text: str) -> None:
    """Send what moves the cursor: without colours ``click.echo`` would take it for one of them."""
    click.echo(text, nl=False, color=True)


def line_anew(text: str) -> None:
    """Draw the one line of standard error that shows how far something is, over the one before."""
    if terminal.draws(sys.stderr):
        click.echo(f"\r{_ERASE_LINE}{text}", nl=False, err=True, color=True)
