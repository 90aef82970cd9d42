"""``obatchctl backup`` and ``restore``: a spool in one file, and back."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import click
import msgspec

from obatchd.backup.contents import Manifest
from obatchd.cli.command import Command, Invocation, clean
from obatchd.cli.commands.config import file_or_system
from obatchd.cli.views.text import size
from obatchd.client.runtime import next_step, start_command
from obatchd.words import counted


def _named(_ctx: click.Context, _parameter: click.Parameter, file: Path) -> Path:
    if not file.name.endswith((".tar", ".tar.gz", ".tgz")):
        raise click.BadParameter(f"{clean(file)}: its name must end with .tar, or with .tar.gz to be packed")
    return file


@click.command("backup", cls=Command)
@click.argument("file", type=click.Path(path_type=Path), callback=_named)
@click.option(
    "--secrets",
    is_flag=True,
    help="With the hashes of keys and what hosts know the head by: programs and hosts go on with theirs.",
)
@click.option("--no-results", is_flag=True, help="Without outbox and failed.")
def backup_command(invocation: Invocation, file: Path, secrets: bool, no_results: bool) -> None:
    """Write everything in the spool into one file.

    FILE ends with .tar or .tar.gz, and only you can read it. The daemon goes on meanwhile.

    Run it as the daemon's user, or with sudo. It holds prompts and answers of all users.
    """
    from obatchd.backup.making import make

    made = make(invocation.spool, file, secrets=secrets, results=not no_results)
    document = {
        "backup": str(file.absolute()),
        **msgspec.to_builtins(made.manifest),
        "drops": made.drops,
        "left_out": made.left_out,
        "unreadable": made.unreadable,
        "size_bytes": made.size_bytes,
    }
    lines = [f"{file}: {_held(made.manifest)}, {counted(made.drops, 'drop')} in the inbox, {size(made.size_bytes)}"]
    lines += [f"{name} in the inbox is still being written, and is not in the backup" for name in made.left_out]
    lines += [f"{name} in the inbox may not be read, and is not in the backup" for name in made.unreadable]
    invocation.answer(document, *lines)


@click.command("restore", cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The daemon's configuration file.")
def restore_command(invocation: Invocation, file: Path, config: Path | None) -> None:
    """Write the backup in FILE into an empty spool.

    No daemon may be at work on the spool (--spool).

    The next start of the daemon goes on with the jobs that were open. Users keep their numbers (uids).
    """
    from obatchd.backup.restoring import restore
    from obatchd.settings import reading

    group = reading.load(file_or_system(config), environ=os.environ, flags={}).access.admin_group
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        gid = None
    manifest = restore(file, invocation.spool, gid)
    document = {"restored": str(file.absolute()), **msgspec.to_builtins(manifest), "spool": str(invocation.spool)}
    lines = [f"{invocation.spool}: {_held(manifest)}, as they were at {manifest.made_at}"]
    lines += [] if manifest.results else ["The backup has no results: outbox and failed are empty."]
    start = next_step(start_command(invocation.spool))
    invocation.answer(document, *lines, f"Now start the daemon:  {start}")


def _held(manifest: Manifest) -> str:
    return f"{counted(manifest.jobs, 'job')}, {manifest.open_jobs:,} of them open"
