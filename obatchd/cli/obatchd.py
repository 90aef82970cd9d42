"""``obatchd`` and ``obatchd host``: the command line of daemons. Heavy modules are imported only once one starts."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Never

import click

from obatchd import __version__
from obatchd.cli import exit_codes, first_process
from obatchd.errors import ConfigError, ObatchError, StoreError


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
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
@click.pass_context
def main(context: click.Context, config: Path | None, spool: str | None, log_level: str | None) -> None:
    """Keep an Ollama server on every GPU and answer every prompt dropped into the inbox, exactly once.

    obatchd stays in the foreground. Ctrl-C (or SIGTERM) lets running answers finish, a second one stops at once; SIGHUP
    makes it read its configuration again.
    """
    if context.invoked_subcommand is not None:
        return
    _prepare()
    flags = {"spool": spool, "log_level": log_level}
    with _told():
        from obatchd.settings import reading

        settings = reading.load(config, environ=os.environ, flags=flags)
        if settings.cluster.head:
            raise ConfigError(
                f"this is the file of a host of {settings.cluster.head}; type  obatchd host  instead, or take head, "
                "fingerprint and name out of [cluster]"
            )

        from obatchd.daemon.life import run

        sys.exit(run(settings, config, flags))


@main.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The host's configuration file (TOML).")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="The directory of the host's credential, facts and logs; or set OBATCH_HOST_DIR.",
)
@click.option(
    "--enrol",
    metavar="FILE|fd:N",
    help="Join with the link in this file of mode 0600 (obatchctl hosts enrol makes it), or at this descriptor.",
)
@click.option("--name", help="The host's name at the head; without it as obatchd-join wrote it.")
@click.option("--until", "until_s", type=float, help="When this machine has to be given back: seconds since 1970.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Log events of this level and above."
)
def host(
    config: Path | None, directory: Path | None, enrol: str | None, name: str | None, until_s: float | None,
    log_level: str | None,
) -> None:  # fmt: skip
    """Lend the GPUs of this machine to the head that it joined (obatchd-join), and serve it until stopped.

    It stays in the foreground. Ctrl-C (or SIGTERM) lets running answers finish, a second one stops at once; SIGUSR1
    says that the machine's time limit is near; SIGHUP makes it read its file again.
    """
    _prepare()
    with _told():
        from obatchd.daemon.host_life import Joining, run

        sys.exit(run(config, directory, {"log_level": log_level}, Joining(enrol, name), until_s))


def _prepare() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    if os.getpid() == 1:
        first_process.stand_before()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tell what keeps a daemon from starting, and end with the code for it."""
    try:
        yield
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
