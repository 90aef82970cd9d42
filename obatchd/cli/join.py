"""``obatchd-join``: make this machine a host of a head."""

from __future__ import annotations

import asyncio
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from obatchd import __version__
from obatchd.cli import exit_codes
from obatchd.errors import ClusterError, ObatchError

if TYPE_CHECKING:
    from obatchd.cluster.keeping import Place

_SERVICE_USER = "obatch"
_SERVICE = "obatchd-host.service"
_SYSTEMD = Path("/run/systemd/system")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("link", metavar="LINK|FILE|-")
@click.option("--name", help="What the host is called at the head; without it, as this machine is.")
@click.option(
    "--dir", "directory", type=click.Path(file_okay=False, path_type=Path),
    help="Where the host keeps its files; or set OBATCH_HOST_DIR. As root without it: those of the service.",
)  # fmt: skip
@click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path),
    help="The host's configuration file; without it host.toml in that directory.",
)  # fmt: skip
@click.version_option(__version__, prog_name="obatchd-join")
def main(link: str, name: str | None, directory: Path | None, config: Path | None) -> None:
    """Join a head, as whose host this machine then answers prompts.

    LINK is what obatchctl hosts code prints on the head: obatch://HEAD:PORT/#SECRET. It may also stand in a FILE, or
    come from standard input (-): what stands in arguments, other users of this machine can see while it runs.
    """
    try:
        _join(link, name, directory, config)
    except ObatchError as error:
        click.echo(f"obatchd-join: {error.message}", err=True)
        sys.exit(exit_codes.FAILED)


def _join(text: str, name: str | None, directory: Path | None, config: Path | None) -> None:
    from obatchd.cluster import links
    from obatchd.cluster.host.directory import default_name, machine
    from obatchd.cluster.joining import join

    link = links.parse(_read(text))
    called = _checked(name or default_name())
    place = _place(directory, config)
    place.prepare()
    joined = asyncio.run(join(link, called, machine()))
    place.keep(joined)
    click.echo(f"This machine is host {joined.name} of the head at {joined.head}.")
    if place.owner is not None:
        _start_service()
        return
    options = "" if directory is None else f" --dir {directory}"
    options += "" if config is None else f" --config {config}"
    click.echo(f"Start it with:  obatchd host{options}")


def _read(text: str) -> str:
    """The link: the argument itself, or what the file or standard input that it names holds."""
    if text.startswith("obatch:"):
        return text
    try:
        return sys.stdin.read() if text == "-" else Path(text).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        words = f"{text} is no link (obatch://…), and cannot be read as a file that holds one: {error}"
        raise ClusterError(words, code="no_link") from None


def _checked(name: str) -> str:
    from obatchd.settings.tables.cluster import host_name

    try:
        return host_name(name)
    except ValueError as error:
        raise ClusterError(f"--name {name}: a name {error}", code="bad_name") from None


def _place(directory: Path | None, config: Path | None) -> Place:
    from obatchd.cluster.host.directory import SERVICE_DIRECTORY, SERVICE_FILE, default_directory
    from obatchd.cluster.keeping import Place

    root = Path(os.path.abspath(directory)) if directory is not None else default_directory()
    if root != SERVICE_DIRECTORY:
        return Place(root, config or root / "host.toml")
    try:
        user = pwd.getpwnam(_SERVICE_USER)
    except KeyError:
        raise ClusterError(
            f"obatchd is not installed as a service here, because there is no user {_SERVICE_USER}: install the "
            "package, or name a directory of your own with --dir",
            code="no_service",
        ) from None
    return Place(root, config or SERVICE_FILE, (user.pw_uid, user.pw_gid))


def _start_service() -> None:
    """Have the service run now and at every start of the machine; one that runs begins again with what it now has."""
    if not _SYSTEMD.is_dir():
        click.echo(f"systemd does not run here; when it does:  systemctl enable --now {_SERVICE}")
        return
    for command in (["systemctl", "enable", _SERVICE], ["systemctl", "restart", _SERVICE]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            told = done.stderr.strip() or f"exit code {done.returncode}"
            raise ClusterError(f"it has joined, but {' '.join(command)} failed: {told}", code="not_started")
    click.echo(f"{_SERVICE} runs. On the head:  obatchctl hosts")
