"""``obatchctl compare``: the same prompts under two models or settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from obatchd.cli.command import Command, Invocation, clean, given
from obatchd.cli.commands.completion import jobs
from obatchd.cli.commands.results import TABLES, form_of, source_of, target_of
from obatchd.cli.views.text import number, table
from obatchd.results.asked import as_value
from obatchd.results.compare import Comparison, Figures, Side, middle
from obatchd.results.export import export
from obatchd.results.rates import Rate
from obatchd.results.side_by_side import write_page
from obatchd.words import counted

_FIELDS_SHOWN = 20
_SHORT, _LONG = 16, 300  # characters of a setting in the table, and below it
_RIGHT = {
    "exact": "right of {:,}, letter for letter",
    "folded": "  or but for case and spaces",
    "numeric": "  or as a number",
}


@click.command("compare", cls=Command)
@click.argument("first", metavar="JOB|DIR", callback=given, shell_complete=jobs)
@click.argument("second", metavar="JOB|DIR", callback=given, shell_complete=jobs)
@click.option("--gold", metavar="COLUMN", help="The column of the input that has the right answers.")
@click.option(
    "--answer",
    metavar="FIELD",
    help="The field of JSON answers that is compared with it. Default: the field of that name, or the only one.",
)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path),
    help=f"Write a page side by side (.html), or a table of both ({TABLES}).",
)  # fmt: skip
@click.option("--rows", default=500, show_default=True, type=click.IntRange(1), help="At most so many on the page.")
@click.option("--seed", type=int, help="Choose the same rows for the page again.")
def compare_command(
    invocation: Invocation,
    /,
    first: str,
    second: str,
    gold: str | None,
    answer: str | None,
    output: Path | None,
    rows: int,
    seed: int | None,
) -> None:
    """Compare two jobs' answers to the same prompts.

    Answers are joined by the ids of their requests. The command shows how many answers are the same, how long and how
    fast they are, and how many are JSON. With --gold it shows how many are right: letter for letter, but for case and
    white space, or as a number. A request without an answer counts as wrong.
    """
    if answer is not None and gold is None:
        raise click.UsageError("--answer goes with --gold")
    page = output is not None and output.suffix.lower() in (".html", ".htm")
    form = None if output is None or page else form_of(output)
    if output is not None and not page and form in (None, "text"):
        raise click.UsageError(f"--output {output}: end its name with .html for a page, with {TABLES} for a table")
    comparison = Comparison(source_of(invocation, first), source_of(invocation, second), gold, answer)
    figures = comparison.figures()
    lines = [*_table(figures), "", *(clean(line) for line in _lines(figures, gold))]
    cut: list[str] = []
    if output is not None:
        with target_of(output) as target:
            if form is None:
                write_page(comparison, list(map(click.unstyle, lines)), rows, target, seed=seed)
            else:
                cut = export(comparison, form, target).cut_lines()
    invocation.answer({**figures.document(), "output": str(output) if output else None})
    if not invocation.json:
        click.echo("\n".join([*lines, *cut, *([f"written to {clean(output)}"] if output else [])]))


def _table(figures: Figures) -> list[str]:
    """The figures of each side, as columns."""
    settings = [(name, values) for name, values in _settings(figures) if max(map(len, values)) <= _SHORT]
    columns = [
        _column(side, {name: values[place] for name, values in settings}) for place, side in enumerate(figures.sides)
    ]
    if figures.known is not None:
        for side, column in zip(figures.sides, columns, strict=True):
            rights = side.rights(figures.known).items()
            column |= {_RIGHT[kind].format(figures.known): rate.percent for kind, rate in rights}
    if any(side.repeats.times for side in figures.sides):
        for side, column in zip(figures.sides, columns, strict=True):
            column["repeats of a prompt all the same"] = side.repeats.rate.percent if side.repeats.times else "–"
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    # Where nothing more is right by a more generous look, that look is left out.
    rows = [row for place, row in enumerate(rows) if row[0][:1] != " " or row[1:] != rows[place - 1][1:]]
    return table(("", *(f">~{side.title}" for side in figures.sides)), rows)


def _settings(figures: Figures) -> list[tuple[str, tuple[str, str]]]:
    """The settings in which both differ, as texts."""
    return [(name.replace("_", " "), (as_value(a), as_value(b))) for name, (a, b) in figures.settings.items()]


def _cut(value: str) -> str:
    return value if len(value) <= _LONG else f"{value[:_LONG]}…"


def _column(side: Side, settings: dict[str, str]) -> dict[str, str]:
    return {
        "model": ", ".join(side.models) or "–",
        **settings,
        "rows": f"{side.rows:,}",
        "answered": f"{side.answered:,}",
        "answers that are JSON": f"{side.json:,}",
        "characters, median": number(middle(side.characters)),
        "tokens, median": number(middle(side.tokens)),
        "tokens/s of an answer, median": number(middle(side.tokens_per_s), digits=1),
        "tokens/s of the whole job": number(side.job_tokens_per_s, digits=1),
    }


def _lines(figures: Figures, gold: str | None) -> Iterator[str]:
    a, b = figures.sides
    yield from (side.unfinished for side in figures.sides if side.unfinished)
    yield from (f"job of {side.title}: {side.name}" for side in figures.sides if side.name != side.title)
    for name, values in _settings(figures):
        if max(map(len, values)) > _SHORT:
            yield from (f"{name} of {side.title}: {_cut(value)}" for side, value in zip((a, b), values, strict=True))
    if figures.prompts_differ:
        yield f"prompts that differ: {figures.prompts_differ:,} of {figures.joined:,}"
    for side in figures.sides:
        if alone := side.rows - figures.joined:
            yield f"in {side.title} alone: {counted(alone, 'row')}"
    yield f"same answer: {figures.agreement.text}"
    if figures.agreement.count > figures.same["exact"]:
        exact = figures.same["exact"]
        yield f"  {exact:,} of them letter for letter; the others but for case, white space or the form of a number"
    fields = sorted(figures.fields.items(), key=lambda field: field[1][True] / field[1].total())
    for name, same in fields[:_FIELDS_SHOWN]:
        yield f"  field {name}: {Rate(same[True], same.total()).text}"
    if len(fields) > _FIELDS_SHOWN:
        yield f"  and {len(fields) - _FIELDS_SHOWN:,} more fields, which are the same more often"
    if figures.known is not None:
        in_a, in_b = figures.right_alone
        yield f"right by the column {gold} in {a.title} alone: {in_a:,}; in {b.title} alone: {in_b:,}"
    yield "In brackets stands the 95 % interval (Wilson's score)."
