"""``obatchctl results``: answers of a job, or of any directory of response files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Command, Document, Invocation, clean, given
from obatchd.cli.commands.completion import jobs
from obatchd.cli.following import FORMS
from obatchd.cli.following import follow as followed
from obatchd.cli.named import is_last, last, latest
from obatchd.cli.views.job import doubts
from obatchd.errors import ControlError, DaemonDownError, NotFoundError, ResultsError
from obatchd.naming import JobName
from obatchd.results.chain import Chain
from obatchd.results.export import BINARY, FORMATS, ONLY, Format, count_rows, export
from obatchd.results.repeats import Prompts
from obatchd.results.review import write_review
from obatchd.results.rows import ResultSet, read_object
from obatchd.results.tally import Tally
from obatchd.words import counted, not_written

TABLES = ".csv, .xlsx, .parquet, .json, .jsonl"  # endings of exports with a row for each request

_LATEST = 100  # jobs among which the latest one with answers is looked for
_TOLD = 10  # jobs of a spool without a daemon


@click.command("results", cls=Command)
@click.argument("place", metavar="JOB|DIR", required=False, callback=given, shell_complete=jobs)
@last
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Format of the export; default: by the ending of --output, else text.",
)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write the export into this file."
)
@click.option("--data-only", is_flag=True, help="With json and jsonl: only the data of each answer.")
@click.option("--only", type=click.Choice(ONLY), help="Write only these: answers that need a look, or failures.")
@click.option("--review", type=click.IntRange(1), metavar="N", help="Write a page with N random answers to check.")
@click.option("--majority", is_flag=True, help="Of a prompt's several answers only the most frequent one.")
@click.option("--only-this", is_flag=True, help="Leave out the answers of its retries.")
@click.option("--seed", type=int, help="Choose the same answers for --review again.")
@click.option("--follow", "-f", is_flag=True, help="Print the answers of a running job as they come, until it is over.")
def results_command(
    invocation: Invocation,
    /,
    place: str | None,
    form: Format | None,
    output: Path | None,
    data_only: bool,
    only: str | None,
    review: int | None,
    majority: bool,
    only_this: bool,
    seed: int | None,
    follow: bool,
) -> None:
    """Print, merge and export answers. JOB is named as for obatchctl job; DIR is an outbox, or any response files.

    Where a job was retried, the answers of its retries replace its failures; attempt_job says which job answered.

    Every row of the input has its row, failures too; fields that obatchd did not use come back with them. At the end
    stand the sum and the failures by cause, on standard error when the export goes to standard output. With --json
    these are one document, and its path says where the answers are.
    """
    if (place is None) != is_last():
        raise click.UsageError("give one of JOB, DIR and --last")
    if follow:
        others = {"--output": output, "--review": review, "--majority": majority, "--json": invocation.json}
        _follow(invocation, place, form, others, data_only=data_only, only=only)
        return
    source = source_of(invocation, place, only_this=only_this)
    prompts = Prompts(source, majority=majority)
    if review is not None:
        of_exports = {"--format": form, "--data-only": data_only, "--only": only, "--majority": majority}
        if given := [option for option, value in of_exports.items() if value]:
            raise click.UsageError(f"{given[0]} goes with an export, not with --review")
        if output is not None and output.suffix.lower() not in (".html", ".htm"):
            raise click.UsageError(f"--output {output}: --review writes a page; end its name with .html")
        output = output or Path(f"{source.job or source.path.name or 'results'}-review.html")
        with target_of(output) as target:
            tally = write_review(source, review, target, seed=seed)
    elif invocation.json and not (output or form or data_only or only):
        tally = count_rows(prompts)
    else:
        form = form or ("text" if output is None else form_of(output))
        if form is None:
            raise click.UsageError(f"--output {output}: end its name with {TABLES} or .txt, or give --format as well")
        if data_only and form not in ("json", "jsonl"):
            raise click.UsageError("--data-only goes with --format json or jsonl")
        if output is None and (invocation.json or (form in BINARY and sys.stdout.isatty())):
            raise click.UsageError("name a file with --output")
        with target_of(output) as target:
            tally = export(prompts, form, target, data_only=data_only, only=only)
    agreement = prompts.agreement
    places = {"path": str(source.path.absolute()), "output": str(output) if output else None}
    invocation.answer({**tally.document(source), "repeats": agreement.document(), **places})
    if not invocation.json:
        lines = [*_named(source), *tally.lines(source), *agreement.lines(), *_written(output, tally)]
        told = _again(source, only) if only else doubts({"job": source.job or source.path}, tally.doubts)
        click.echo("\n".join([*map(clean, lines), *told]), err=output is None)


def _follow(
    invocation: Invocation,
    place: str | None,
    form: Format | None,
    others: Mapping[str, object],
    *,
    data_only: bool,
    only: str | None,
) -> None:
    """As ``export`` to standard output, of a job whose answers come."""
    if given := [option for option, value in others.items() if value]:
        raise click.UsageError(f"{given[0]} does not go with --follow")
    if form not in (None, *FORMS):
        raise click.UsageError(f"--follow prints {' or '.join(FORMS)}; the other formats need to know every row first")
    if data_only and form != "jsonl":
        raise click.UsageError("--data-only goes with --format jsonl")
    job = place or latest(invocation.client())
    try:
        source, tally = followed(invocation, job, form, sys.stdout.buffer, data_only=data_only, only=only)
    except KeyboardInterrupt:  # who has seen enough
        sys.exit(exit_codes.OK)
    if source is not None:
        told = _again(source, only) if only else doubts({"job": source.job}, tally.doubts)
        click.echo("\n".join(clean(line) for line in [*_named(source), *tally.lines(source), *told]), err=True)


def _named(source: ResultSet) -> list[str]:
    """The job, where nobody has named it."""
    if not is_last():
        return []
    return [f"{source.title}, job {source.job}" if source.job not in ("", source.title) else source.title]


def _written(output: Path | None, tally: Tally) -> list[str]:
    if output is None:
        return []
    if tally.shown is None:
        return [f"written to {output}"]
    shown, of = tally.shown
    return [f"written to {output}: {shown:,} of {counted(of, 'answer')}"]


def _again(source: ResultSet, only: str) -> list[str]:
    """The command that asks for answers again that were cut."""
    if only != "truncated" or not source.job:
        return []
    return [f"  ask these again:  obatchctl retry {source.job} --only truncated --max-response-tokens N"]


def source_of(invocation: Invocation, place: str | None, *, only_this: bool = False) -> ResultSet:
    """A path as it is; of a job the results in the daemon's place of it, with those of its retries.

    A file or folder whose name alone is given may be what was dropped, so a job of that name goes before it. Without a
    daemon, the one in the spool's outbox. None is the caller's latest job.
    """
    path = Path(place) if place is not None else None
    if path is not None and _is_place(invocation, str(place), path):
        return _responses(path, f"its job has the answers:  obatchctl results {path.name}")
    try:
        place = place or latest(invocation.client())
        found = _job(invocation, place)
    except DaemonDownError as down:
        return _without_daemon(invocation, place, path, down)
    except NotFoundError:
        if path is None:
            raise
        if path.exists():
            return _responses(path, "it has no job with its name yet; obatchctl jobs lists the jobs")
        raise NotFoundError(f"{place} is neither a directory nor a job; obatchctl jobs lists the jobs") from None
    if path is not None and path.is_dir() and not invocation.json:
        both = f"{path} is a job and a folder here; this is the job {found['job']}. The folder: ./{path}"
        click.echo(clean(both), err=True)
    if found["outbox"] is None:
        raise _refused(invocation, found, path)
    if found.get("state") not in (None, "done") and not Path(found["outbox"]).exists():  # it has begun this moment
        reason = f"{found.get('label') or found['name']} is still running: no request is answered yet"
        raise ControlError(f"{reason}; see:  obatchctl job {found['job']}", code="no_responses")
    places: list[tuple[str, Path]] = []
    for job in () if only_this else found.get("retries") or ():
        with contextlib.suppress(NotFoundError):  # it was erased this moment
            if (place_of_retry := _job(invocation, job)["outbox"]) is not None:
                places.append((job, Path(place_of_retry)))
    return Chain(Path(found["outbox"]), places) if places else ResultSet(Path(found["outbox"]))


def _refused(invocation: Invocation, job: Document, path: Path | None) -> ControlError:
    """That a job was refused, and why; where the latest one was meant, which one has answers."""
    reasons = [f"job {job['job']} ({job['name']}) was refused: {'; '.join(job['notes'])}"]
    reasons.append(f"{job['refused_to']} has it")
    if path is None:
        listed = invocation.client().get("jobs", owner="mine", limit=_LATEST)["jobs"]
        reasons += [f"the one before:  obatchctl results {one['job']}" for one in listed if one["outbox"]][:1]
    return ControlError("\n".join(reasons), code="refused")


def _is_place(invocation: Invocation, place: str, path: Path) -> bool:
    """Whether ``place`` is meant as a path and not as the name of a job: it has results of a job, or is no label."""
    if path.is_dir() and ResultSet(path).job:
        return True
    if os.sep not in place or place.startswith((os.sep, "./", "../")):
        return os.sep in place
    try:
        return not invocation.client().get("jobs", label=place, limit=1)["jobs"]
    except DaemonDownError:
        return True


def _without_daemon(invocation: Invocation, place: str | None, path: Path | None, down: DaemonDownError) -> ResultSet:
    if (kept := _kept(invocation.spool, place)) is not None:
        if not invocation.json:
            click.echo("obatchd does not answer: nobody can say whether this job was retried.", err=True)
        return ResultSet(kept)
    if path is None or not path.exists():
        raise _with_jobs(down, invocation.spool) from None
    try:
        return _responses(path, "its answers are in a spool.")
    except ResultsError as none:
        raise DaemonDownError(f"{none.message}\n{down.message}", code=down.code) from None


def _responses(path: Path, hint: str) -> ResultSet:
    """The responses at ``path``; where there are none, ``hint`` says where those to a file of prompts are."""
    if (source := ResultSet(path)).has_responses():
        return source
    if path.is_dir():
        raise ResultsError(f"there are no response files in {path}", code="no_responses")
    raise ResultsError(f"there is no response in {path}. If it is a file of prompts, {hint}", code="no_responses")


def _job(invocation: Invocation, job: str) -> Document:
    return invocation.client().get("jobs", job)


def _with_jobs(error: DaemonDownError, spool: Path) -> DaemonDownError:
    """The same with the jobs whose results can be read all the same."""
    names = sorted(_in_outbox(spool), key=lambda path: path.name.rpartition(".")[2], reverse=True)
    if error.code != DaemonDownError.code or not names:
        return error
    more = [f"  and {len(names) - _TOLD:,} more in {spool / 'outbox'}"] if len(names) > _TOLD else []
    told = ["Results of these jobs can be read meanwhile:", *(f"  {clean(path.name)}" for path in names[:_TOLD]), *more]
    return DaemonDownError("\n".join([error.message, *told]), code=error.code)


def _in_outbox(spool: Path) -> list[Path]:
    """The directories of jobs in the outbox: a personal one, or that of the user in a system service's."""
    paths: list[Path] = []
    outbox = spool / "outbox"
    for parent in (outbox, outbox / str(os.getuid())):
        with contextlib.suppress(OSError):
            paths += [path for path in parent.iterdir() if "." in path.name]
    return paths


def _kept(spool: Path, place: str | None) -> Path | None:
    """The directory of the one job in the outbox that is named so; None where there is none or are several."""
    paths = _in_outbox(spool)
    if place is None:
        return max(paths, key=lambda path: path.name.rpartition(".")[2], default=None)
    name, ways = JobName(place), []
    for path in paths:
        told = read_object(path / "status.json")
        ways.append(name.fits(path.name.rpartition(".")[2], str(told.get("name")), told.get("label")))
    fitting = next((way for way in zip(*ways, strict=True) if any(way)), ())
    return paths[fitting.index(True)] if sum(fitting) == 1 else None


def form_of(output: Path) -> Format | None:
    """The format that the ending of a name says; None where it says none."""
    ending = output.suffix.lower().removeprefix(".")
    ending = {"txt": "text", "md": "text", "ndjson": "jsonl"}.get(ending, ending)
    return ending if ending in FORMATS else None


@contextlib.contextmanager
def target_of(output: Path | None) -> Iterator[BinaryIO]:
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
        raise ResultsError(not_written(output, error)) from None
    finally:
        with contextlib.suppress(OSError):  # where it could not even be made
            temporary.unlink(missing_ok=True)
