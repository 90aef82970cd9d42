"""``obatchctl doctor``: one page on what is wrong here, each line with the next command. Needs no daemon."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Command, Invocation, clean
from obatchd.cli.commands.config import file_or_system
from obatchd.cli.doctor import host_checks, spool_checks
from obatchd.cli.doctor.result import CheckResult, bad, ok
from obatchd.cli.views.text import styled
from obatchd.client.client import Client
from obatchd.errors import ConfigError, ObatchError
from obatchd.settings.settings import Settings


@click.command("doctor", cls=Command)
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The daemon's configuration file.")
def doctor_command(invocation: Invocation, config: Path | None) -> None:
    """Look for what is wrong on this host. Exit code 1 if a line is bad."""
    results, lines = list(examine(invocation.spool, file_or_system(config))), []
    for result in results:
        lines.append(styled(f"{result.level:<6}") + clean(f"{result.about:<8}{result.text}"))
        if result.next_command:
            lines.append(f"{'':<14}→ {clean(result.next_command)}")
    document = {"findings": [result._asdict() for result in results]}
    invocation.answer(document, view=lambda _: lines)
    sys.exit(exit_codes.FAILED if any(result.level == "bad" for result in results) else exit_codes.OK)


def examine(spool: Path, config: Path | None) -> Iterator[CheckResult]:
    """Every check, in the order in which things have to work."""
    from obatchd.settings import reading

    settings = Settings()
    try:
        settings = reading.load(config, environ=os.environ, flags={})
        yield ok("config", str(config) if config else "no file; the defaults and the environment count")
    except ConfigError as error:
        yield bad("config", error.message.replace("\n", "; "), f"obatchctl config check {config or ''}")
    yield host_checks.driver(settings)
    yield host_checks.ollama(settings)
    if not settings.ollama_instances:
        yield host_checks.model_store(settings, spool)
    running = False
    with contextlib.suppress(ObatchError):
        Client(spool).get("ping")
        running = True
    yield host_checks.ports(settings, running)
    yield host_checks.foreign_ollama()
    yield host_checks.clock()
    yield from spool_checks.daemon(spool)
    yield from spool_checks.directories(spool)
    yield spool_checks.disk(spool, settings)
