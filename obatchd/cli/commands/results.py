"""``obatchctl results``: answers of a job, or of any directory of response files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from obatchd.cli.command import Command, Invocation, clean, given
from obatchd.cli.commands.completion import known
from obatchd.cli.views.job import doubts
from obatchd.errors import ControlError, DaemonDownError, NotFoundError, ResultsError
from obatchd.results.export import FORMATS, ONLY, Format, export
from obatchd.results.review import write_review
from obatchd.results.rows import ResultSet


@click.command("results", cls=Command)
@click.argument("place", metavar="JOB|DIR", callback=given, shell_complete=known("jobs", "job"))
@click.option("--format", "form", type=click.Choice(FORMATS), help="Default: by the ending of --output, else text.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write into this file.")
@click.option("--data-only", is_flag=True, help="json and jsonl: of each answer only its data.")
@click.option("--only", type=click.Choice(ONLY), help="Write only these: answers that need a look, or failures.")
@click.option("--review", type=click.IntRange(1), metavar="N", help="Write a page with N random answers to check.")
@click.option("--seed", type=int, help="Choose the same answers for --review again.")
def results_command(
    invocation: Invocation,
    /,
    place: str,
    form: Format | None,
    output: Path | None,
    data_only: bool,
    only: str | None,
    review: int | None,
    seed: int | None,
) -> None:
    """Print, merge and export answers. JOB is a job id or its beginning; DIR an outbox, or any response files.

    Every row of the input has its row, failures too; fields that obatchd did not use come back with them. At the end
    stands the sum, and the failures by cause; on standard error when the export goes to standard output.
    """
    source = _source(invocation, place)
    if review is not None:
        output = output or Path(f"{source.job or source.path.name or 'results'}-review.html")
        with _target(output) as target:
            tally = write_review(source, review, target, seed=seed)
    else:
        form = form or _form_of(output)
        if data_only and form not in ("json", "jsonl"):
            raise click.UsageError("--data-only goes with --format json or jsonl")
        if output is None and (invocation.json or (form == "parquet" and sys.stdout.isatty())):
            raise click.UsageError("name a file with --output")
        with _target(output) as target:
            tally = export(source, form, target, data_only=data_only, only=only)
    invocation.answer({**tally.document(source), "output": str(output) if output else None})
    if not invocation.json:
        lines = [*tally.lines(source), *([f"written to {output}"] if output else [])]
        told = () if only else doubts({"job": source.job or source.path}, tally.doubts)
        click.echo("\n".join([*map(clean, lines), *told]), err=output is None)


def _source(invocation: Invocation, place: str) -> ResultSet:
    """A path as it is; of a job the daemon's place of its results; without a daemon, the one in the spool's outbox."""
    if os.sep in place or Path(place).exists():
        return ResultSet(Path(place))
    try:
        found = invocation.client().get("jobs", place)
    except DaemonDownError:
        paths: list[Path] = []
        outbox = invocation.spool / "outbox"  # a personal one, or a system service's with a directory of the user
        for parent in (outbox, outbox / str(os.getuid())):
            with contextlib.suppress(OSError):
                paths += [path for path in parent.iterdir() if "." in path.name]
        kept = [path for path in paths if path.name.rpartition(".")[2].startswith(place)]
        if len(kept) != 1:
            raise
        return ResultSet(kept[0])
    except NotFoundError:
        raise NotFoundError(f"{place} is neither a directory nor a job; obatchctl jobs lists the jobs") from None
    if found["outbox"] is None:
        raise ControlError(f"{place} was refused; {found['refused_to']} has it and the reason", code="refused")
    return ResultSet(Path(found["outbox"]))


def _form_of(output: Path | None) -> Format:
    ending = output.suffix.lower().removeprefix(".") if output else "text"
    ending = {"txt": "text", "md": "text", "ndjson": "jsonl"}.get(ending, ending)
    if ending not in FORMATS:
        raise click.UsageError(f"--output {output}: its ending says no format; name one with --format")
    return ending


@contextlib.contextmanager
def _target(output: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that appears under its name when it is whole."""
    if output is None:
        yield sys.stdout.buffer
        return
    temporary = output.with_name(f".{output.name}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
        temporary.replace(output)
    except OSError as error:
        raise ResultsError(f"{output}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
