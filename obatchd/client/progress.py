"""How far a job is, for whoever waits: a bar in a terminal or a notebook, a line now and then elsewhere."""

from __future__ import annotations

import html
import re
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from obatchd import terminal, times
from obatchd.terminal import clean

_LINE_S = 30.0  # between two lines where there is nothing to draw on
_BAR = 24  # columns
_TIME = re.compile(r" \([^()]*next try at .*?\)")  # it is another one each time
_ERASE_LINE = "\r\x1b[K"  # ECMA-48
ENDED = ("succeeded", "failed", "cancelled", "expired")


class Progress(Protocol):
    """Shows the documents of a job, one after the other."""

    def show(self, job: Mapping[str, Any]) -> None:
        """How far it is now."""

    def tell(self, text: str) -> None:
        """Something that happened, in words."""

    def close(self) -> None:
        """Nobody waits any more."""


def progress(wanted: bool, stream: TextIO | None = None) -> Progress:
    """What suits the place where this runs; without it being ``wanted``, nothing."""
    stream = stream or sys.stderr
    if not wanted:
        return Silence()
    if in_notebook():
        return Notebook()
    return Bar(stream) if terminal.draws(stream) else Lines(stream)


def in_notebook() -> bool:
    """Whether this runs in a kernel of Jupyter; a shell of IPython in a terminal is none."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def speed(job: Mapping[str, Any]) -> str:
    """Speed, time left and failures of a job."""
    parts = (
        f"{job['requests_per_s']:.1f}/s" if job["requests_per_s"] else "",
        f"{job['tokens_per_s']:,.0f} tokens/s" if job["tokens_per_s"] else "",
        f"{times.duration(job['eta_s'])} left" if job["eta_s"] is not None else "",
        f"{job['failed']:,} failed" if job["failed"] else "",
    )
    return ", ".join(filter(None, parts))


def ended(job: Mapping[str, Any]) -> int:
    """Requests of a job that have their outcome."""
    return sum(job[name] for name in ENDED)


def _title(job: Mapping[str, Any]) -> str:
    """What its owner calls it."""
    return str(job.get("label") or job["name"])


def _counts(job: Mapping[str, Any]) -> str:
    total = f"{job['requests']:,}" if job["requests"] is not None else f"{job['indexed']:,} or more"
    return f"{ended(job):,} of {total}"


class Silence:
    """Says nothing."""

    def show(self, job: Mapping[str, Any]) -> None: ...

    def tell(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Reasons:
    """Why a job waits, once for each reason."""

    def __init__(self) -> None:
        self._told = ""

    def new(self, job: Mapping[str, Any]) -> str:
        """The reason, where it is another one than before."""
        reason = _TIME.sub("", str(job.get("held_up") or ""))
        if not reason or reason == self._told:
            return ""
        self._told = reason
        return f"{job['job']} waits: {job['held_up']}"


class Lines:
    """A line every half minute, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next_s = time.monotonic() + _LINE_S
        self._reasons = _Reasons()

    def show(self, job: Mapping[str, Any]) -> None:
        if reason := self._reasons.new(job):
            self.tell(reason)
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _LINE_S
            self.tell(f"{job['job']}  {_counts(job)}  {speed(job)}")

    def tell(self, text: str) -> None:
        print(clean(text), file=self._stream, flush=True)

    def close(self) -> None: ...


class Bar:
    """One line of a terminal, drawn anew."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._reasons = _Reasons()
        self._drawn = ""

    def show(self, job: Mapping[str, Any]) -> None:
        if reason := self._reasons.new(job):
            self.tell(reason)
        filled = _BAR * ended(job) // job["requests"] if job["requests"] else 0
        bar = "█" * filled + "░" * (_BAR - filled)
        line = clean(f"{_title(job)}  {bar}  {_counts(job)}  {speed(job)}".rstrip())
        self._draw(line[: max(shutil.get_terminal_size().columns - 1, 1)])

    def tell(self, text: str) -> None:
        """Above the bar."""
        drawn, self._drawn = self._drawn, ""
        self._write(f"{_ERASE_LINE if drawn else ''}{clean(text)}\n")
        if drawn:
            self._draw(drawn)

    def close(self) -> None:
        """The last state stays."""
        if self._drawn:
            self._write("\n")
        self._drawn = ""

    def _draw(self, line: str) -> None:
        if line != self._drawn:
            self._write((_ERASE_LINE if self._drawn else "") + line)
            self._drawn = line

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Notebook:
    """A bar in the output of a cell."""

    def __init__(self) -> None:
        self._reasons = _Reasons()
        self._handle: Any = None

    def show(self, job: Mapping[str, Any]) -> None:
        if reason := self._reasons.new(job):
            self.tell(reason)
        plain = clean(f"{_title(job)}  {_counts(job)}  {speed(job)}".rstrip())
        # Without a number the bar moves on its own (HTML, the element progress).
        extent = f' value="{ended(job)}" max="{job["requests"]}"' if job["requests"] else ""
        self._update({"text/plain": plain, "text/html": f"<progress{extent}></progress> {html.escape(plain)}"})

    def tell(self, text: str) -> None:
        print(clean(text), file=sys.stderr, flush=True)

    def close(self) -> None: ...

    def _update(self, bundle: dict[str, str]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
