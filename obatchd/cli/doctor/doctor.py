"""``obatchctl doctor``: one page on what is wrong here, each line with the next command. Needs no daemon."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Command, Document, Invocation, clean
from obatchd.cli.commands.config import SYSTEM_FILE
from obatchd.cli.doctor import alarm_checks, host_checks, joined_checks, spool_checks, store_checks
from obatchd.cli.doctor.result import CheckResult, bad, ok, warn
from obatchd.cli.views.text import styled
from obatchd.client.control import ControlClient
from obatchd.client.runtime import (
    SYSTEM_SPOOL,
    is_service,
    last_config,
    next_step,
    restart_command,
)
from obatchd.errors import ConfigError, DaemonDownError, ObatchError
from obatchd.settings.settings import Settings


@click.command("doctor", cls=Command)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A configuration file; else the one that the running daemon has read.",
)
def doctor_command(invocation: Invocation, config: Path | None) -> None:
    """Look for what is wrong on this host, and on those that joined. Exit code 1 if a line is bad."""
    results, lines = list(examine(invocation.spool, config)), []
    shown = ""
    for result in results:
        if result.host != shown:
            lines.append(f"host {clean(result.host)}")
            shown = result.host
        lines.append(styled(f"{result.level:<6}") + clean(f"{result.about:<8}{result.text}"))
        if result.next_command:
            lines.append(f"{'':<14}→ {clean(result.next_command)}")
    document = {"findings": [result._asdict() for result in results]}
    invocation.answer(document, view=lambda _: lines)
    sys.exit(exit_codes.FAILED if any(result.level == "bad" for result in results) else exit_codes.OK)


def examine(spool: Path, config: Path | None) -> Iterator[CheckResult]:
    """Every check, in the order in which things have to work; ``config`` instead of the daemon's own file."""
    found: Document | ObatchError
    client = ControlClient(spool)
    try:
        found = client.get("status")
    except ObatchError as error:
        found = error
    of_daemon = config is None and not isinstance(found, ObatchError)
    first, settings = _settings(spool, config or _configuration(spool), of_daemon)
    admin_groups = [settings.access.admin_group] if settings else []
    of_hosts = joined_checks.machines(client) if not isinstance(found, ObatchError) and found.get("hosts") else ()
    for result in (first, *_checks(spool, settings, found), *of_hosts):
        yield result._replace(next_command=next_step(result.next_command, *admin_groups))


def _settings(spool: Path, config: Path | None, of_daemon: bool) -> tuple[CheckResult, Settings | None]:
    """The settings of a daemon on this spool, as far as they can be told: None where the file is wrong, or closed."""
    from obatchd.settings import reading

    if config and os.path.exists(config) and not os.access(config, os.R_OK):
        text = f"you may not read {config}; what depends on it is left out below"
        return warn("config", text, "sudo obatchctl doctor"), None
    environment = {"OBATCHD_ACCESS_MODE": "service"} if is_service(spool) else {}  # as the unit has it
    try:
        settings = reading.load(config, environ=environment | os.environ, flags={})
    except ConfigError as error:
        return bad("config", error.message.replace("\n", "; "), f"obatchctl config check {config or ''}"), None
    lacks = "" if settings.model else "; it names no model, so each job has to"
    if config:
        return ok("config", f"{config}{' (of the running daemon)' if of_daemon else ''}{lacks}"), settings
    who = "the running daemon has" if of_daemon else "a daemon has"
    return ok("config", f"no file: {who} the defaults, unless OBATCHD_… variables say otherwise{lacks}"), settings


def _checks(spool: Path, known: Settings | None, found: Document | ObatchError) -> Iterator[CheckResult]:
    """All but that of the configuration; what depends on one that is not known is left out."""
    settings = known or Settings()
    status = None if isinstance(found, ObatchError) else found
    if status and (waiting := status.get("waiting_for_restart")):
        text = f"changed, and waiting for a restart of the daemon: {', '.join(waiting)}"
        yield warn("config", text, restart_command(spool))
    yield host_checks.driver(settings)
    yield host_checks.ollama(settings, status)
    if known:
        yield from _of_settings(known, spool, found)
    yield host_checks.foreign_ollama()
    yield host_checks.clock()
    if (undelivered := alarm_checks.undelivered(status["notices"] if status else ())) is not None:
        yield undelivered
    elif known:
        yield alarm_checks.alarms(known)
    if status and (status.get("hosts") or settings.cluster.door is not None):
        yield from joined_checks.joined(status)
        yield from joined_checks.engine(status)
    yield from spool_checks.daemon(spool, found)
    yield from spool_checks.directories(spool)
    yield spool_checks.disk(spool, settings)


def _of_settings(settings: Settings, spool: Path, found: Document | ObatchError) -> Iterator[CheckResult]:
    status = None if isinstance(found, ObatchError) else found
    if not settings.ollama_instances:
        yield from store_checks.model_store(settings, spool, spool / "work/models")
    down = isinstance(found, DaemonDownError) and found.code in ("daemon_down", "no_spool")
    yield host_checks.ports(settings, status, runs=not down)
    yield host_checks.http_door(settings, status, runs=not down)
    if settings.access.mode == "service":
        yield from spool_checks.groups(settings)


def _configuration(spool: Path) -> Path | None:
    """The file of the daemon that works on the spool, or did last; else the system's, on the system's spool."""
    recorded = last_config(spool)
    if recorded is not None:
        return Path(recorded) if recorded else None
    return SYSTEM_FILE if spool == SYSTEM_SPOOL and os.path.exists(SYSTEM_FILE) else None
