"""Shared by every ``obatchctl`` command: the spool, ``--json`` and answers."""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from obatchd.cli import exit_codes
from obatchd.terminal import clean as clean  # which commands import from here
from obatchd.times import span_s

if TYPE_CHECKING:
    from obatchd.client.control import ControlClient

Document = dict[str, Any]
_PLAIN = re.compile(r"[0-9]+([.][0-9]*)?")
View = Callable[[Document], Iterable[str]]  # a document as lines for people, without control characters of others


class Invocation:
    """One call of ``obatchctl``: the user's options, and how the answer is shown."""

    def __init__(self, spool: Path, as_json: bool) -> None:
        self.spool = spool
        self.json = as_json
        self.failure = exit_codes.FAILED  # the exit code of an error that has none of its own

    def client(self) -> ControlClient:
        """A client of the spool's daemon."""
        from obatchd.client.control import ControlClient

        return ControlClient(self.spool)

    def answer(self, document: Document, *lines: str, view: View | None = None) -> None:
        """The one JSON document with ``--json``, else for people plain lines, or those of a view as they are."""
        if self.json:
            print_json(document)
        elif shown := [*map(clean, lines), *(view(document) if view else ())]:
            click.echo("\n".join(shown))


def _remember_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Invocation).json = True


_JSON = click.Option(
    ["--json"], is_flag=True, expose_value=False, callback=_remember_json, help="Answer with one JSON document."
)


class Command(click.Command):
    """A command with ``--json``; its function is given the invocation first."""

    def __init__(self, *, callback: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(callback=click.make_pass_decorator(Invocation)(callback), **kwargs)
        for option in self.params:
            if _number(option.type) and option.metavar is None:
                option.metavar = "N"  # which click calls INTEGER RANGE
        self.params.append(_JSON)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            meant = _meant(error.option_name, error.possibilities or [])
            raise click.NoSuchOption(error.option_name, possibilities=meant, ctx=error.ctx) from None
        except click.BadParameter as error:
            if error.param is not None and (wanted := _number(error.param.type)):
                raise click.BadParameter(f"it must be {wanted}", error.ctx, error.param, error.param_hint) from None
            raise


def _meant(typed: str, options: Sequence[str]) -> list[str]:
    """The options that may be meant; the two dashes before each make none of them more like another."""
    names = {option.lstrip("-"): option for option in options}
    return [names[name] for name in difflib.get_close_matches(typed.lstrip("-"), names, 2)]


def _number(kind: click.ParamType) -> str:  # type: ignore[type-arg]  # generic only in newer ones
    """What an option that takes a number takes, in plain words; nothing of another option."""
    if not isinstance(kind, type(click.INT) | type(click.FLOAT)):
        return ""
    words = "a whole number" if isinstance(kind, type(click.INT)) else "a number"
    least, most = getattr(kind, "min", None), getattr(kind, "max", None)
    words += f" from {least}" if least is not None else ""
    return f"{words} to {most}" if most is not None else words


class Group(click.Group):
    """A group of such commands; one that ``lists`` may be called without a command, which is its ``list`` then."""

    command_class = Command

    def __init__(self, name: str, about: str, *, lists: bool = False, options: Sequence[click.Option] = ()) -> None:
        """``options`` are those of its ``list``, given without naming that."""
        params = [*options, _JSON]
        super().__init__(name, help=about, params=params, invoke_without_command=lists, callback=self._list)

    def _list(self, **options: Any) -> None:
        context = click.get_current_context()
        if context.invoked_subcommand is None:
            context.invoke(self.commands["list"], **options)
        elif given := [name for name, value in options.items() if value]:
            raise click.UsageError(f"--{given[0]} belongs to {self.name} list")


class Span(click.ParamType):  # type: ignore[type-arg]  # generic only in newer ones
    """A length of time, ``90m``, ``2h``, ``3d`` or plain seconds, of at least ``least_s``; in seconds.

    Where ``with_unit``, a plain number is refused: who means days by it would get seconds.
    """

    name = "time"

    def __init__(self, least_s: float = 0.0, *, with_unit: bool = False) -> None:
        self._least_s = least_s
        self._with_unit = with_unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if self._with_unit:
            _need_unit(str(value).strip(), param, ctx)
        try:
            seconds = span_s(str(value))
        except ValueError as error:
            self.fail(clean(error), param, ctx)
        if seconds < self._least_s:
            self.fail(f"{clean(value)} is too short; at least {self._least_s:g} s", param, ctx)
        return seconds


class Since(Span):
    """A length of time ago, with its unit, or a date or time as ISO 8601 has them; in seconds of the wall clock."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        _need_unit(str(value).strip(), param, ctx)
        try:
            return datetime.fromisoformat(str(value)).timestamp() if "-" in str(value) else time.time() - span_s(value)
        except (ValueError, OverflowError):
            self.fail(
                f"{clean(value)} is neither a length of time such as 3d nor a date such as 2026-11-23", param, ctx
            )


def _need_unit(typed: str, param: click.Parameter | None, ctx: click.Context | None) -> None:
    if _PLAIN.fullmatch(typed):
        raise click.BadParameter(f"{typed} what? Write {typed}d for days, {typed}h for hours", ctx, param)


def given(_ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    """Callback of an argument that may be left out but not be empty: a variable of a script that nobody set."""
    if "" in (value if isinstance(value, tuple) else (value,)):
        raise click.BadParameter("it is empty")
    return value


def print_json(document: Document) -> None:
    """One document on one line, with the schema number first."""
    click.echo(json.dumps({"schema": 1, **document}))
