"""One line of ``obatchctl doctor``."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """What was looked at, how it is, and the next command where something should be done."""

    level: Literal["ok", "warn", "bad"]
    about: str
    text: str
    next_command: str = ""


def ok(about: str, text: str) -> Finding:
    """Good as it is."""
    return Finding("ok", about, text)


def warn(about: str, text: str, next_command: str) -> Finding:
    """Works, but not as well as it could."""
    return Finding("warn", about, text, next_command)


def bad(about: str, text: str, next_command: str) -> Finding:
    """The daemon will not work like this."""
    return Finding("bad", about, text, next_command)
