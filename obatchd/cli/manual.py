"""``python -m obatchd.cli.manual DIR``: man pages and completions, from the declarations of settings and commands.

Used when a package is built or obatchd is installed. The pages are for man(7); nothing in them is written twice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import click

from obatchd import __version__
from obatchd.cli import join, obatchctl, obatchd
from obatchd.cli.commands.completion import script
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
    ("/var/spool/obatch/outbox/NAME", "Results of the user NAME; only NAME and administrators may read them."),
    ("/var/spool/obatch/failed/NAME", "Drops of NAME that could not become jobs, each with the reason."),
    ("/var/spool/obatch/work", "Files of the daemon: jobs, prompts, answers so far. Do not change them."),
    ("/var/lib/obatch", "Home of the daemon: models, unless servers.models_dir says otherwise."),
    ("/opt/obatchd", "The program, one directory per version; current is the one in use."),
    ("/usr/share/doc/obatchd/README.md", "Where every page of the documentation begins."),
    ("~/.local/state/obatch", "The spool of a user's own daemon: systemctl --user start obatchd."),
)
_OF_JOIN = (
    ("/etc/obatch/host.toml", "The host's settings, with the head and the host's own name; it holds no secret."),
    ("/var/lib/obatch-host/credential", "By which the head knows this host; only obatch may read it."),
    (
        "~/.local/state/obatch-host",
        "Both, of a host without root, unless --dir or OBATCH_HOST_DIR names another place.",
    ),
)
_OF_DAEMON = (
    ("OBATCH_SPOOL", "The spool, where neither --spool nor OBATCHD_SPOOL nor the configuration names one."),
    ("OBATCHD_…", "Each setting has a variable; see obatchd.toml(5)."),
)
_ENVIRONMENT = (
    ("OBATCH_SPOOL", "The spool of the daemon to talk to, where --spool is not given."),
    (
        "NO_COLOR, CLICOLOR=0, TERM=dumb",
        "Each turns colours off. TERM=dumb also keeps progress lines from being redrawn.",
    ),
    ("CLICOLOR_FORCE=1", "Colours, in files and pipes, too."),
)
_GOING_BACK = (
    "A newer obatchd brings the files in work/ up to date when it first starts, and makes a copy of what it changes: "
    "state.db.before-schema-N. An older obatchd refuses them and exits with 78. To go back all the same: install the "
    "older version, stop obatchd, delete state.db-wal and state.db-shm, and rename the copy to state.db. Jobs accepted "
    "since then are found again by their inputs; requests of theirs may be answered twice."
)
_REMOVING = (
    "Removing the package stops the daemon and removes the program. The configuration, the spool with all drops and "
    "results, and the models stay; purging (dpkg --purge, scripts/install --purge) deletes these too. dnf and "
    "rpm keep a configuration that you changed as /etc/obatch/obatchd.toml.rpmsave. The user obatch "
    "and the groups obatch-submit and obatch-admin stay in any case."
)


_TOML = (
    "TOML. Every setting has a default. Each may also be given as an environment variable, which overrides the file. "
    "obatchctl config check says what is wrong in a file, obatchctl reload has obatchd read a changed one again: "
    "settings marked live change at once, those marked next job for jobs accepted afterwards. A change of settings "
    "marked restart needs a restart: systemctl restart obatchd."
)
_COMPLETIONS = {
    "bash": "bash-completion/completions/obatchctl",
    "zsh": "zsh/vendor-completions/_obatchctl",
    "fish": "fish/vendor_completions.d/obatchctl.fish",
}


def main(directory: Path) -> None:
    """Write everything below ``directory`` as it lies below /usr/share."""
    files = {place: script(obatchctl.main, shell) for shell, place in _COMPLETIONS.items()}
    pages = {
        "man8/obatchd.8": _daemon(),
        "man8/obatchd-join.8": _join(),
        "man1/obatchctl.1": _control(),
        "man5/obatchd.toml.5": _settings(),
    }
    files |= {f"man/{name}": "".join(f"{line}\n" for line in lines) for name, lines in pages.items()}
    for place, text in files.items():
        path = directory / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def _daemon() -> Iterator[str]:
    yield from _head("obatchd", 8, "keeps an Ollama server on every GPU and answers prompts from an inbox")
    yield from _about("obatchd", obatchd.main)
    yield ".SH COMMANDS"
    context = click.Context(obatchd.main, info_name="obatchd")
    for name, command in _commands(obatchd.main, context, "obatchd"):
        yield from (f".SS {_text(f'{name} {_usage(command)}')}", *_paragraphs(command.help), *_options(command))
    yield from (".SH FILES", *_tagged(_FILES), ".SH GOING BACK", _text(_GOING_BACK), ".SH REMOVING", _text(_REMOVING))
    yield from (".SH ENVIRONMENT", *_tagged(_OF_DAEMON), ".SH EXIT STATUS", *_tagged(_EXIT_CODES))
    yield from (".SH SEE ALSO", ".BR obatchctl (1),", ".BR obatchd.toml (5)")


def _join() -> Iterator[str]:
    yield from _head("obatchd-join", 8, "makes this machine a host of a head of obatchd")
    yield from _about("obatchd-join", join.main)
    yield from (".SH FILES", *_tagged(_OF_JOIN), ".SH EXIT STATUS", *_tagged(_EXIT_CODES[:3]))
    yield from (".SH SEE ALSO", ".BR obatchd (8),", ".BR obatchctl (1)")


def _control() -> Iterator[str]:
    yield from _head("obatchctl", 1, "talks to obatchd: jobs, servers, models")
    yield from _about("obatchctl", obatchctl.main)
    yield ".SH COMMANDS"
    context = click.Context(obatchctl.main, info_name="obatchctl")
    for name, command in _commands(obatchctl.main, context, "obatchctl"):
        yield from (f".SS {_text(f'{name} {_usage(command)}')}", *_paragraphs(command.help), *_options(command))
    yield from (".SH ENVIRONMENT", *_tagged(_ENVIRONMENT), ".SH EXIT STATUS", *_tagged(_EXIT_CODES))
    yield from (".SH SEE ALSO", ".BR obatchd (8),", ".BR obatchd.toml (5)")


def _settings() -> Iterator[str]:
    yield from _head("obatchd.toml", 5, "configuration of obatchd")
    yield from (".SH DESCRIPTION", _text(_TOML))
    for section, group in groupby(leaves(), key=lambda leaf: leaf.section):
        yield f".SH {_text(f'[{section}]' if section else 'SETTINGS').upper()}"
        for leaf in group:
            kind = leaf.type_text
            kind = f"{kind[:1].upper()}{kind[1:]}"
            about = f"{leaf.field.description or ''} {kind}; default {default_text(leaf)}; {leaf.reload}."
            yield from (".TP", f".B {_text(leaf.name)}", _text(about), ".br", _text(f"Variable: {leaf.variable}"))
    yield from (".SH SEE ALSO", ".BR obatchd (8),", ".BR obatchctl (1)")


def _commands(group: click.Group, context: click.Context, path: str) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, click.Context(command, parent=context), f"{path} {name}")


def _head(name: str, section: int, about: str) -> Iterator[str]:
    yield f'.TH {name.upper()} {section} "" "obatchd {__version__}" "obatchd"'
    yield from (".SH NAME", _text(f"{name} - {about}"))


def _about(name: str, command: click.Command) -> Iterator[str]:
    yield from (".SH SYNOPSIS", f".B {name}", _text(_usage(command)))
    yield from (".SH DESCRIPTION", *_paragraphs(command.help), ".SH OPTIONS", *_options(command))


def _usage(command: click.Command) -> str:
    return " ".join(command.collect_usage_pieces(click.Context(command)))


def _paragraphs(text: str | None) -> Iterator[str]:
    for paragraph in (text or "").split("\n\n"):
        if words := " ".join(paragraph.replace("\b", "").split()):
            yield from (".PP", _text(words))


def _options(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    records = (parameter.get_help_record(context) for parameter in command.get_params(context))
    return _tagged(filter(None, records))


def _tagged(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for tag, text in rows:
        yield from (".TP", f".B {_text(tag)}", _text(text))


def _text(text: str) -> str:
    """Plain text for roff: no escapes, no requests at the beginning of a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("\n", " ")
    return "\\&" + escaped if escaped[:1] in (".", "'") else escaped


if __name__ == "__main__":
    main(Path(sys.argv[1]))
