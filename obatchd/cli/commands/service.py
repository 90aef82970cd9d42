"""``obatchctl help``, ``version``, ``logs``, ``start`` and ``stop``: words that people try first."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import click

from obatchd import __version__
from obatchd.cli.command import Command, Invocation
from obatchd.client.runtime import SYSTEM_SPOOL, default_spool, next_step
from obatchd.errors import ControlError, DaemonDownError


@click.command("help", cls=Command)
@click.argument("names", metavar="[COMMAND]...", nargs=-1)
def help_command(invocation: Invocation, names: tuple[str, ...]) -> None:
    """Show the help of obatchctl, or of one of its commands."""
    context = click.get_current_context().find_root()
    for name in names:
        group = context.command
        if not isinstance(group, click.Group):
            raise click.UsageError(f"'{context.command_path}' has no commands of its own.", context)
        _, command, _ = group.resolve_command(context, [name])
        assert command is not None
        context = click.Context(command, info_name=name, parent=context)
    text = context.get_help()
    invocation.answer({"command": context.command_path, "text": text}, view=lambda _: [text])


@click.command("version", cls=Command)
def version_command(invocation: Invocation) -> None:
    """Say which obatchctl this is, and which obatchd runs."""
    running = None
    with contextlib.suppress(DaemonDownError):
        running = invocation.client().get("ping")["version"]
    daemon = f"obatchd {running}, running on" if running else "obatchd is not running on"
    document = {"obatchctl": __version__, "obatchd": running, "spool": str(invocation.spool)}
    invocation.answer(document, f"obatchctl {__version__}", f"{daemon} {invocation.spool}")


@click.command("start", cls=Command)
def start_command(invocation: Invocation) -> None:
    """Say how to start obatchd."""
    pid = invocation.client().get("ping")["pid"]  # which says how, where nobody answers
    invocation.answer({"pid": pid}, f"obatchd runs on {invocation.spool} already (pid {pid}).")


@click.command("stop", cls=Command)
def stop_command(invocation: Invocation) -> None:
    """Say how to stop obatchd. Running answers finish first, and what waits is kept."""
    pid = invocation.client().get("ping")["pid"]
    systemctl, _ = _of_systemd(pid)
    runs, where = "in a terminal", f"Press Ctrl-C there, or type: kill {pid}"
    if systemctl:
        runs, where = "as a service", f"To stop it: {next_step(f'{systemctl} stop obatchd')}"
    raise ControlError(f"obatchd runs {runs} (pid {pid}), and obatchctl does not stop it. {where}", code="not_here")


@click.command("logs", cls=Command)
@click.option(
    "-n", "--lines", default=200, show_default=True, type=click.IntRange(1), help="How many lines, the latest ones."
)
@click.option("-f", "--follow", is_flag=True, help="Go on as obatchd writes more, until Ctrl-C.")
def logs_command(invocation: Invocation, lines: int, follow: bool) -> None:
    """Show what obatchd writes into the journal. What a server writes: obatchctl servers logs SERVER."""
    try:
        pid = invocation.client().get("ping")["pid"]
        _, journalctl = _of_systemd(pid)
    except DaemonDownError as error:
        if error.code == "permission" or invocation.spool != default_spool():
            raise
        journalctl = ["journalctl"] if invocation.spool == SYSTEM_SPOOL else ["journalctl", "--user"]
    if not journalctl:
        raise ControlError(
            f"obatchd runs in a terminal (pid {pid}) and writes its log there. What a server writes: obatchctl "
            "servers logs SERVER",
            code="not_here",
        )
    form = ["--output=json"] if invocation.json else []
    sys.stdout.flush()
    try:
        os.execvp(journalctl[0], [*journalctl, "--unit=obatchd", f"--lines={lines}", *["--follow"] * follow, *form])
    except OSError as error:
        raise ControlError(f"{journalctl[0]} cannot be run: {error.strerror}", code="not_here") from None


def _of_systemd(pid: int) -> tuple[str, list[str]]:
    """The commands for the unit that a daemon runs in: ``systemctl`` and ``journalctl``; empty where it is in none."""
    group = ""
    with contextlib.suppress(OSError):
        group = Path(f"/proc/{pid}/cgroup").read_text("utf-8").strip()  # 0::/system.slice/obatchd.service, cgroups(7)
    if not group.endswith("/obatchd.service"):
        return "", []
    if "/user.slice/" in group:
        return "systemctl --user", ["journalctl", "--user"]
    return "sudo systemctl", ["journalctl"]
