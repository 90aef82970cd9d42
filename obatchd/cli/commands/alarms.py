"""``obatchctl alarms``: whether alarms arrive."""

from __future__ import annotations

import sys

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Document, Group, Invocation, clean

alarms_command = Group("alarms", "Try the ways in which administrators are told of alarms.")
_NO_WAY = "Nobody is told: the daemon has neither command nor webhook under [alarms]."


@alarms_command.command("test")
def test_command(invocation: Invocation) -> None:
    """Send an alarm in every way, and say what came of it.

    The ways are the settings in [alarms]. The exit code is 1 if one alarm did not arrive.
    """
    tested = invocation.client().post("alarms/test")
    invocation.answer(tested, view=_lines)
    told = [way["told"] for way in tested["ways"]]
    sys.exit(exit_codes.OK if told and all(told) else exit_codes.FAILED)


def _lines(tested: Document) -> list[str]:
    lines = []
    for way in tested["ways"]:
        state = click.style("told", fg="green") if way["told"] else click.style("failed", fg="red")
        lines.append(f"{clean(way['way'])}: {state}" + (clean(f": {way['reason']}") if way["reason"] else ""))
    return lines or [_NO_WAY]
