"""``obatchd``: the daemon's command line. Heavy modules are imported only once it is clear that it starts."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Never

import click

from obatchd import __version__
from obatchd.cli import exit_codes, first_process
from obatchd.errors import ConfigError, ObatchError, StoreError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The configuration file (TOML).")
@click.option(
    "--spool",
    type=click.Path(file_okay=False),
    help="The directory of inbox and outbox, which obatchd makes where it is missing; or set OBATCH_SPOOL.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Log events of this level and above."
)
@click.version_option(__version__, prog_name="obatchd")
def main(config: Path | None, spool: str | None, log_level: str | None) -> None:
    """Keep an Ollama server on every GPU and answer every prompt dropped into the inbox, exactly once.

    obatchd stays in the foreground. Ctrl-C (or SIGTERM) lets running answers finish, a second one stops at once; SIGHUP
    makes it read its configuration again.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    if os.getpid() == 1:
        first_process.stand_before()
    flags = {"spool": spool, "log_level": log_level}
    try:
        from obatchd.settings import reading

        settings = reading.load(config, environ=os.environ, flags=flags)

        from obatchd.daemon.life import run

        sys.exit(run(settings, config, flags))
    except ConfigError as error:
        click.echo(f"obatchd: the configuration cannot be used:\n{error.message}", err=True)
        sys.exit(exit_codes.CONFIG)
    except ObatchError as error:
        click.echo(f"obatchd: {error.message}", err=True)
        newer = isinstance(error, StoreError) and error.code == "store_newer"  # starting again would not help
        sys.exit(exit_codes.CONFIG if newer else exit_codes.FAILED)


def _leave(number: int, frame: object) -> Never:
    """Of a signal before the daemon takes signals itself: nothing has begun that a kill could harm."""
    os._exit(exit_codes.OK)
