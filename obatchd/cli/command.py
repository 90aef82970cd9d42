"""Shared by every ``obatchctl`` command: the spool, ``--json``, errors as text or JSON, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from obatchd.cli import exit_codes
from obatchd.errors import ConfigError, DaemonDownError, ForbiddenError, ObatchError

if TYPE_CHECKING:
    from obatchd.client.client import Client

Document = dict[str, Any]
View = Callable[[Document], Iterable[str]]  # a document as lines for people, without control characters of others

_T = TypeVar("_T")
_WANTS_JSON = f"{__name__}.wants_json"


class Invocation:
    """One call of ``obatchctl``: the user's options, and how the answer is shown."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.json = False
        self.failure = exit_codes.FAILED  # the exit code of an error that has none of its own

    def client(self) -> Client:
        """A client of the spool's daemon."""
        from obatchd.client.client import Client

        return Client(self.spool)

    def answer(self, document: Document, *lines: str, view: View | None = None) -> None:
        """The one JSON document with ``--json``, else for people plain lines, or those of a view as they are."""
        if self.json:
            print_json(document)
        elif shown := [*map(clean, lines), *(view(document) if view else ())]:
            click.echo("\n".join(shown))


pass_invocation = click.make_pass_decorator(Invocation)


class Command(click.Command):
    """A command with ``--json``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_json_option())


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_json_option())


class RootGroup(click.Group):
    """Reports obatchd's errors of every command below it in plain words, or as JSON, with their exit codes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Wrong usage ends the parsing before --json is reached.
        ctx.meta[_WANTS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if not ctx.meta[_WANTS_JSON]:
                raise
            _print_error("usage", error.format_message())
            sys.exit(exit_codes.USAGE)
        except ObatchError as error:
            invocation = ctx.find_object(Invocation)
            if invocation is not None and invocation.json:
                _print_error(error.code, error.message)
            else:
                click.echo(clean(error.message, keep="\n"), err=True)
            sys.exit(_exit_code(error, exit_codes.FAILED if invocation is None else invocation.failure))


def _print_error(code: str, message: str) -> None:
    print_json({"error": {"code": code, "message": message}})


def _json_option() -> click.Option:
    return click.Option(
        ["--json"], is_flag=True, expose_value=False, callback=_remember_json, help="Answer with one JSON document."
    )


def _remember_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Invocation).json = True


def given(_ctx: click.Context, _parameter: click.Parameter, value: _T) -> _T:
    """Callback of an argument that may be left out but not be empty: a variable of a script that nobody set."""
    if "" in (value if isinstance(value, tuple) else (value,)):
        raise click.BadParameter("it is empty")
    return value


def _exit_code(error: ObatchError, failure: int) -> int:
    if isinstance(error, DaemonDownError):
        return exit_codes.UNKNOWN if error.code == "permission" else exit_codes.NOT_RUNNING
    if isinstance(error, ForbiddenError):
        return exit_codes.UNKNOWN
    return exit_codes.CONFIG if error.code == ConfigError.code else failure


def print_json(document: Document) -> None:
    """One document on one line, with the schema number first."""
    click.echo(json.dumps({"schema": 1, **document}))


def clean(value: object, keep: str = "") -> str:
    """Text without control characters, which a drop's name may carry to deceive a terminal."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in str(value))
