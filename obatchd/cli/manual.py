"""``python -m obatchd.cli.manual DIR``: man pages and completions, from the declarations of settings and commands.

Used when a package is built or obatchd is installed. The pages are for man(7); nothing in them is written twice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from obatchd import __version__
from obatchd.cli import obatchctl, obatchd
from obatchd.settings.reading import leaves
from obatchd.settings.text import default_text

_EXIT_CODES = (
    ("0", "Good."),
    ("1", "The command failed, a request of a job failed, or the daemon is degraded."),
    ("2", "Wrong usage."),
    ("3", "The daemon is not running."),
    ("4", "No permission: not in the group that may use this daemon, or only administrators may do this."),
    ("78", "The configuration, or a store written by a newer obatchd, cannot be used; systemd does not restart then."),
)
_FILES = (
    ("/etc/obatch/obatchd.toml", "The configuration of the system service; see obatchd.toml(5)."),
    ("/var/spool/obatch/inbox", "Where members of the group obatch-submit drop files. Moving is best, copying works."),
    ("/var/spool/obatch/outbox/NAME", "Results of the user NAME, whom alone, with administrators, they are shown to."),
    ("/var/spool/obatch/failed/NAME", "Drops of NAME that could not become jobs, each with the reason."),
    ("/var/spool/obatch/work", "Everything that must survive; the daemon's own."),
    ("/var/lib/obatch", "Home of the daemon: models, unless servers.models_dir says otherwise."),
    ("/opt/obatchd", "The program, one directory per version; current is the one in use."),
    ("~/.local/state/obatch", "The spool of a user's own daemon: systemctl --user start obatchd."),
)
_GOING_BACK = (
    "A newer obatchd brings the files in work/ up to date when it first starts, and makes a copy of what it changes: "
    "state.db.before-schema-N. An older obatchd refuses them and exits with 78. To go back all the same: install the "
    "older version, stop obatchd, delete state.db-wal and state.db-shm, and rename the copy to state.db. Jobs accepted "
    "since then are found again by their inputs; requests of theirs may be answered twice."
)
_REMOVING = (
    "Removing the package stops the daemon and removes the program. The configuration, the spool with all drops and "
    "results, and the models stay; purging (dpkg --purge, scripts/install --purge) deletes these too. The user obatch "
    "and the groups obatch-submit and obatch-admin stay in any case."
)


def main(directory: Path) -> None:
    """Write everything below ``directory`` as it lies below /usr/share."""
    pages = {
        "man8/obatchd.8": daemon_page(),
        "man1/obatchctl.1": control_page(),
        "man5/obatchd.toml.5": settings_page(),
    }
    files = {f"man/{name}": "\n".join(lines) + "\n" for name, lines in pages.items()}
    places = {
        "bash": "bash-completion/completions/obatchctl",
        "zsh": "zsh/vendor-completions/_obatchctl",
        "fish": "fish/vendor_completions.d/obatchctl.fish",
    }
    for shell, place in places.items():
        complete = get_completion_class(shell)
        assert complete is not None  # one of click's own
        files[place] = complete(obatchctl.main, {}, "obatchctl", "_OBATCHCTL_COMPLETE").source()
    for place, text in files.items():
        path = directory / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def daemon_page() -> list[str]:
    """obatchd(8)."""
    command = obatchd.main
    return [
        *_head("obatchd", 8, "keeps an Ollama server on every GPU and answers prompts from an inbox"),
        *_synopsis("obatchd", command),
        *_section("description", *_paragraphs(command.help)),
        *_section("options", *_options(command)),
        *_section("files", *_tagged(_FILES)),
        *_section("going back", _text(_GOING_BACK)),
        *_section("removing", _text(_REMOVING)),
        *_section("exit status", *_tagged(_EXIT_CODES)),
        *_section("see also", ".BR obatchctl (1),", ".BR obatchd.toml (5)"),
    ]


def control_page() -> list[str]:
    """obatchctl(1)."""
    lines = [
        *_head("obatchctl", 1, "talks to obatchd: jobs, servers, models"),
        *_synopsis("obatchctl", obatchctl.main),
        *_section("description", *_paragraphs(obatchctl.main.help)),
        *_section("options", *_options(obatchctl.main)),
        ".SH COMMANDS",
    ]
    context = click.Context(obatchctl.main, info_name="obatchctl")
    for name, command in _commands(obatchctl.main, context, ""):
        usage = " ".join(piece for piece in command.collect_usage_pieces(click.Context(command)))
        lines += [f".SS {_text(f'obatchctl {name} {usage}')}", *_paragraphs(command.help), *_options(command)]
    lines += _section("exit status", *_tagged(_EXIT_CODES))
    return [*lines, *_section("see also", ".BR obatchd (8),", ".BR obatchd.toml (5)")]


def settings_page() -> list[str]:
    """obatchd.toml(5)."""
    lines = [
        *_head("obatchd.toml", 5, "configuration of obatchd"),
        *_section(
            "description",
            _text(
                "TOML. Every setting has a default. Each may also be given as an environment variable, which goes "
                "before the file. obatchctl config check says what is wrong in a file, obatchctl reload applies a "
                "changed one: at once what is marked live, to jobs accepted afterwards what is marked next job. "
                "Settings marked restart need systemctl restart obatchd."
            ),
        ),
    ]
    section = None
    for leaf in leaves():
        if leaf.section != section:
            section = leaf.section
            lines.append(f".SH {_text(f'[{section}]' if section else 'SETTINGS').upper()}")
        kind = leaf.type_text
        about = (
            f"{leaf.field.description or ''} {kind[:1].upper()}{kind[1:]}; default {default_text(leaf)}; {leaf.reload}."
        )
        lines += [".TP", f".B {_text(leaf.name)}", _text(about), ".br", _text(f"Variable: {leaf.variable}")]
    return [*lines, *_section("see also", ".BR obatchd (8),", ".BR obatchctl (1)")]


def _commands(group: click.Group, context: click.Context, prefix: str) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        yield f"{prefix}{name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, click.Context(command, parent=context), f"{prefix}{name} ")


def _head(name: str, section: int, about: str) -> list[str]:
    title = f'.TH {name.upper()} {section} "" "obatchd {__version__}" "obatchd"'
    return [title, ".SH NAME", _text(f"{name} - {about}")]


def _synopsis(name: str, command: click.Command) -> list[str]:
    pieces = command.collect_usage_pieces(click.Context(command))
    return [".SH SYNOPSIS", f".B {name}", _text(" ".join(pieces))]


def _section(title: str, *lines: str) -> list[str]:
    return [f".SH {title.upper()}", *lines]


def _paragraphs(text: str | None) -> list[str]:
    lines: list[str] = []
    for paragraph in (text or "").split("\n\n"):
        words = " ".join(paragraph.replace("\b", "").split())
        lines += [".PP", _text(words)] if words else []
    return lines


def _options(command: click.Command) -> list[str]:
    context = click.Context(command)
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    return list(_tagged(record for record in records if record))


def _tagged(rows: object) -> list[str]:
    lines: list[str] = []
    for tag, text in rows:  # type: ignore[attr-defined]
        lines += [".TP", f".B {_text(tag)}", _text(text)]
    return lines


def _text(text: str) -> str:
    """Plain text for roff: no escapes, no requests at the beginning of a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("\n", " ")
    return "\\&" + escaped if escaped[:1] in (".", "'") else escaped


if __name__ == "__main__":
    main(Path(sys.argv[1]))
