"""``obatchctl config``: works without a daemon."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from obatchd.cli.command import Group, Invocation
from obatchd.cli.doctor.result import missing_groups, nearest
from obatchd.client.runtime import last_config
from obatchd.errors import ConfigError, ControlError
from obatchd.words import counted, not_written

if TYPE_CHECKING:
    from obatchd.settings.settings import Settings

SYSTEM_FILE = Path("/etc/obatch/obatchd.toml")
config_command = Group("config", "Check, show or begin a configuration file.")
_file = click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))


def file_or_system(file: Path | None) -> Path | None:
    """The given file, else the system's where there is one."""
    return file or (SYSTEM_FILE if os.path.exists(SYSTEM_FILE) else None)


def of_daemon(spool: Path) -> Path | None:
    """The file of the daemon that works on the spool, or did last; else the system's."""
    recorded = last_config(spool)
    if recorded is None:
        return file_or_system(None)
    return Path(recorded) if recorded else None


@config_command.command("check")
@_file
def check_command(invocation: Invocation, file: Path | None) -> None:
    """Say what is wrong in FILE and in OBATCHD_… variables. Exit code 78 if something is.

    A program or directory that they name and that is not on this host gets a warning.
    """
    from obatchd.settings import reading

    source = file_or_system(file)
    settings, origin = reading.load_with_origin(source, environ=os.environ, flags={})
    shown, warnings = str(source) if source else None, [*_not_here(settings, origin), *_of_no_use(settings, origin)]
    good = f"good, with {counted(len(warnings), 'warning')}:" if warnings else "good"
    document = {"file": shown, "valid": True, "warnings": warnings}
    made = [f"{shown or 'the defaults'}: {good}", *(f"  {warning}" for warning in warnings), *_made_of(settings)]
    invocation.answer(document, *made)


def _of_no_use(settings: Settings, origin: Mapping[str, str]) -> Iterator[str]:
    """What is set and has no effect, or another one than its name says."""
    if settings.gpus.use != "none":
        return
    if not settings.ollama_instances:
        yield 'gpus.use is "none" and [ollama_instances] is empty: only the CPU of this host works'
    elif "servers.slots" in origin:
        yield "servers.slots is for servers that obatchd starts, here none: servers.remote_slots is for the others"


def _made_of(settings: Settings) -> Iterator[str]:
    """What obatchd makes of addresses, whose numbers may be taken for others."""
    if servers := settings.ollama_instances:
        count, each = counted(len(servers), "server"), counted(settings.servers.remote_slots, "request")
        yield f"  {count} of [ollama_instances], {each} at a time for each (servers.remote_slots)"
        if set(servers.values()) - {-1}:
            yield "  the numbers behind their addresses are indices of GPUs of this host, no slots"
        yield f"  model: {settings.model or 'none; each job has to name one'}"


def _not_here(settings: Settings, origin: Mapping[str, str]) -> Iterator[str]:
    """What is named and not there, as far as the caller may look."""
    from obatchd.settings.base import expanded

    mail = settings.notifications
    programs = {
        "alarms.command": settings.alarms.command,
        "notifications.mail_command": mail.mail_command if any("@" in entry for entry in mail.allow) else [],
        "servers.ollama": [settings.servers.ollama] if "servers.ollama" in origin else [],
    }
    for key, (program, *_) in ((key, command) for key, command in programs.items() if command):
        if shutil.which(program) is None and not nearest(Path(program))[1]:
            there = os.path.exists(program)
            yield f"{key}: {program} cannot be run" if there else f"{key}: there is no program {program}"
    for key, name in missing_groups(settings):
        if key in origin or settings.access.mode == "service":
            yield f"{key}: there is no group {name}; sudo groupadd --system {name} makes it"
    if settings.servers.models_dir:
        with contextlib.suppress(ConfigError):  # the daemon's user has another home
            store = expanded(settings.servers.models_dir)
            if not store.is_dir() and not nearest(store)[1]:
                yield f"servers.models_dir: there is no directory {store}"


@config_command.command("show")
@_file
def show_command(invocation: Invocation, file: Path | None) -> None:
    """Show the settings of a daemon with FILE. Each is shown with the place that it comes from.

    Without FILE it is the one of the daemon on the spool, else the system's.
    """
    from obatchd.settings import reading, text

    settings, origin = reading.load_with_origin(file or of_daemon(invocation.spool), environ=os.environ, flags={})
    values = {leaf.key: text.visible_value(settings, leaf) for leaf in reading.leaves()}
    document = {"settings": values, "origin": origin}
    invocation.answer(document, view=lambda _: [text.show(settings, origin).removesuffix("\n")])


@config_command.command("init")
@_file
def init_command(invocation: Invocation, file: Path | None) -> None:
    """Write a commented configuration to FILE, or to standard output."""
    from obatchd.settings.text import commented_toml

    text = commented_toml()
    if file is None:
        invocation.answer({"file": None, "text": text}, view=lambda _: text.splitlines())
        return
    try:
        with open(file, "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise ControlError(f"{file} is there already; name another file", code="exists") from None
    except OSError as error:
        raise ControlError(not_written(file, error), code="not_written") from None
    invocation.answer({"file": str(file)}, f"{file} written; every setting is in it.")
