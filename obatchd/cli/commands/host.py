"""``obatchctl status``, ``metrics``, ``drain``, ``undrain`` and ``reload``: the whole host."""

from __future__ import annotations

import sys
import time
from functools import partial

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Command, Document, Invocation, Span
from obatchd.cli.views.status import render
from obatchd.cli.views.waiting import screen_lines
from obatchd.cli.views.waiting import watch as show_again
from obatchd.client.runtime import restart_command
from obatchd.errors import ConfigError, ControlError, ObatchError

_POLL_S = 0.3


@click.command("status", cls=Command)
@click.option(
    "--watch", is_flag=True, help="Show them again and again, until Ctrl-C; with --json, one document a line."
)
@click.option(
    "--interval",
    default="1s",
    show_default=True,
    type=Span(0.1),
    metavar="TIME",
    help="The pause between two looks.",
)
def status_command(invocation: Invocation, watch: bool, interval: float) -> None:
    """Show servers, queue, inbox and jobs. Exit code 0 healthy, 1 degraded, 3 not running, 4 unknown."""
    look = partial(invocation.client().get, "status")
    if watch:
        show_again(invocation, interval, look, _fitted)
    status = look()
    invocation.answer(status, view=render)
    sys.exit(exit_codes.FAILED if status["state"] == "degraded" else exit_codes.OK)


def _fitted(status: Document) -> list[str]:
    """The page for a screen, if need be with a line for each host."""
    return render(status, screen_lines())


@click.command("metrics", cls=Command)
def metrics_command(invocation: Invocation) -> None:
    """Print the numbers that Prometheus reads, as text.

    Prometheus itself gets them at /metrics of the API over HTTP, or from a file; for administrators.
    """
    document = invocation.client().get("metrics")
    invocation.answer(document, *document["text"].rstrip("\n").split("\n"))


@click.command("drain", cls=Command)
@click.option("--wait", is_flag=True, help="Return when no request is running any more.")
def drain_command(invocation: Invocation, wait: bool) -> None:
    """Send no request to any server until undrain. Then the host is safe to reboot: waiting requests are on disk.

    It ends with undrain, or when obatchd restarts.
    """
    client = invocation.client()
    client.post("drain")
    try:
        while (state := client.get("status")["state"]) != "drained" and wait:
            if state not in ("draining", "degraded"):
                raise ControlError(f"draining was ended: the state is {state}", code="not_draining")
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        click.echo("Still draining; obatchctl undrain ends it.", err=True)
        sys.exit(exit_codes.INTERRUPTED)
    drained = "Drained: safe to reboot."
    draining = "Draining; obatchctl status says when it is drained."
    invocation.answer({"state": state}, drained if state == "drained" else draining)


@click.command("undrain", cls=Command)
def undrain_command(invocation: Invocation) -> None:
    """Take up work again after drain."""
    invocation.answer(invocation.client().post("undrain"), "Work goes on.")


@click.command("reload", cls=Command)
def reload_command(invocation: Invocation) -> None:
    """Make the daemon read its configuration again. A wrong one changes nothing."""
    try:
        document = invocation.client().post("reload")
    except ObatchError as error:
        if error.code != ConfigError.code:
            raise
        stays = "Nothing has changed: obatchd goes on with the settings that it had."
        raise ConfigError(f"{error.message}\n{stays}") from None
    next_job = document["next_job"]
    effects = {
        "Changed": [key for key in document["changed"] if key not in next_job],
        "Changed for jobs accepted from now on": next_job,
        "Needs a restart of the daemon": document["needs_restart"],
    }
    lines = [f"{effect}: {', '.join(keys)}" for effect, keys in effects.items() if keys]
    if document["needs_restart"]:
        lines.append(f"Jobs go on after the restart: {restart_command(invocation.spool)}")
    invocation.answer(document, *(lines or ["Nothing has changed."]))
