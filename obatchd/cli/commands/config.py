"""``obatchctl config``: works without a daemon."""

from __future__ import annotations

import os
from pathlib import Path

import click

from obatchd.cli.command import Group, Invocation
from obatchd.errors import ControlError
from obatchd.words import not_written

SYSTEM_FILE = Path("/etc/obatch/obatchd.toml")
config_command = Group("config", "Check, show or begin a configuration file.")
_file = click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))


def file_or_system(file: Path | None) -> Path | None:
    """The given file, else the system's where there is one."""
    return file or (SYSTEM_FILE if os.path.exists(SYSTEM_FILE) else None)


@config_command.command("check")
@_file
def check_command(invocation: Invocation, file: Path | None) -> None:
    """Say what is wrong in FILE and in OBATCHD_… variables. Exit code 78 if something is."""
    from obatchd.settings import reading

    source = file_or_system(file)
    reading.load(source, environ=os.environ, flags={})
    shown = str(source) if source else None
    invocation.answer({"file": shown, "valid": True}, f"{shown or 'the defaults'}: good")


@config_command.command("show")
@_file
def show_command(invocation: Invocation, file: Path | None) -> None:
    """Show the settings of a daemon with FILE. Each is shown with the place that it comes from."""
    from obatchd.settings import reading, text

    settings, origin = reading.load_with_origin(file_or_system(file), environ=os.environ, flags={})
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
