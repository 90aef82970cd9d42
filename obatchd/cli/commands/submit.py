"""``obatchctl submit``: hand files over, wait for the answers, fetch them."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Command, Document, Invocation, clean
from obatchd.cli.commands.completion import models
from obatchd.cli.views import waiting
from obatchd.cli.views.job import causes, counts, doubts, price
from obatchd.cli.views.status import OUTCOMES, job_state
from obatchd.cli.views.text import duration, place, styled
from obatchd.client.drops import Drop
from obatchd.client.steps import Patience, Submitting, run
from obatchd.errors import ControlError, DaemonDownError, ObatchError
from obatchd.results.export import data_of, document
from obatchd.results.rows import ResultSet, Row
from obatchd.words import counted, said

_PROMPT_CHARACTERS = 2000  # of each prompt on the screen; the files have all of it


@click.command("submit", cls=Command)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with settings of the job, such as job.toml.",
)
@click.option("--model", shell_complete=models, help="Model of requests that name none.")
@click.option("--system-message", help="System message of requests that bring none.")
@click.option("--context-length", type=click.IntRange(1), help="Context of each request in tokens.")
@click.option("--max-response-tokens", type=click.IntRange(1), help="Token limit of an answer.")
@click.option("--format", metavar="json|FILE", help="Answers must be JSON, or fit the JSON Schema in FILE.")
@click.option(
    "--in-source", metavar="FIELD", multiple=True, help="Values of FIELD must occur in the prompt; repeatable."
)
@click.option("--think", metavar="VALUE", help="Whether models reason: true, false, auto, low, medium, high, max.")
@click.option("--template", metavar="TEXT|@FILE", help="The prompt, with fields of each record in braces: {note}.")
@click.option("--text-column", metavar="NAME", help="The column or field of each record that is the prompt.")
@click.option("--id-column", metavar="NAME", help="The column or field of each record that is its id.")
@click.option(
    "--encoding", metavar="NAME", help="Encoding of texts and tables that are not UTF-8: cp1252, shift_jis …."
)
@click.option("--lines", is_flag=True, default=None, help="Make each line of a text a prompt.")
@click.option("--label", metavar="TEXT", help="A name for the job, to find it by: obatchctl job TEXT.")
@click.option("--priority", type=click.Choice(["low", "normal", "high"]), help="Priority among your own jobs.")
@click.option(
    "--deadline",
    metavar="TIME",
    help="When requests without an answer expire: 2h or 3d from acceptance, or an ISO 8601 time.",
)
@click.option(
    "--sample",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Run N random requests first, show the answers, and ask whether to run all.",
)
@click.option("--repeat", type=click.IntRange(1, 100), metavar="K", help="Answer each prompt K times, as ID#1 to ID#K.")
@click.option("--yes", is_flag=True, help="Do not ask after the sample.")
@click.option("--skip-done", is_flag=True, help="Copy answers that the same requests got in your earlier jobs.")
@click.option(
    "--notify", metavar="mail:ADDRESS|URL", multiple=True, help="Tell this address when the job is over; repeatable."
)
@click.option("--wait", is_flag=True, help="Return when every request is answered; exit code 1 if one failed.")
@click.option(
    "--output-dir", type=click.Path(file_okay=False, path_type=Path), help="Wait, and copy the results into DIRECTORY."
)
def submit_command(
    invocation: Invocation,
    /,
    paths: tuple[Path, ...],
    config: Path | None,
    sample: int | None,
    yes: bool,
    skip_done: bool,
    wait: bool,
    output_dir: Path | None,
    **given: Any,
) -> None:
    """Make a job of each PATH, a file or a folder. Returns when the daemon holds it safely on disk."""
    settings = _settings(config, given)
    drops = {path: settings | {"skip_done": True} if skip_done else settings for path in paths}
    if sample is not None:
        tried = {key: value for key, value in settings.items() if key != "label"} | {"sample": sample}
        samples = _try_first(invocation, dict.fromkeys(paths, tried), ask=not yes)
        if samples is None:
            return
        # Answers of the sample are not asked for again.
        drops = {path: {"skip_done": samples[path], **own} for path, own in drops.items()}
    waits = wait or output_dir is not None
    jobs, refused = _hand_over(invocation, drops)
    if jobs and waits:
        told = {job["job"]: job["notes"] for job in jobs}
        jobs = finish(invocation, jobs, output_dir, told)
        if not invocation.json:
            answered = [job["job"] for job in jobs if job["succeeded"]]
            click.echo("".join(f"see the answers:  obatchctl results {clean(job)}\n" for job in answered), nl=False)
    elif not invocation.json:
        for job in filter(is_bad, jobs):
            click.echo(f"{job['job']}: {counts(job)} when it was read; see why:  obatchctl job {job['job']} --failures")
    invocation.answer({"jobs": jobs, "refused": refused})
    sys.exit(exit_codes.FAILED if refused or any(map(is_bad, jobs)) else exit_codes.OK)


def finish(
    invocation: Invocation, jobs: list[Document], output_dir: Path | None, told: dict[str, list[str]] | None = None
) -> list[Document]:
    """Wait for jobs, copy their results where that is wanted, and say how they ended; their last documents.

    Notes that were ``told``, by job, are not told again.
    """
    jobs = _wait(invocation, [job["job"] for job in jobs])
    if output_dir is not None:
        jobs = [_fetch(job, output_dir) if job["state"] == "done" else job for job in jobs]
    if not invocation.json:
        _report(jobs, told or {})
    return jobs


def is_bad(job: Document) -> bool:
    """Whether a job was refused, or a request of it has no answer although it is over."""
    return job.get("state") == "refused" or any(map(job.get, OUTCOMES[1:]))


def _try_first(invocation: Invocation, drops: dict[Path, Document], *, ask: bool) -> dict[Path, str] | None:
    """Run a sample of each drop and show it; the jobs of the samples, or None when the rest is not wanted."""
    jobs, refused = _hand_over(invocation, drops, "a sample; results:")
    samples = {path: job["job"] for path, job in zip(drops, jobs, strict=False)}
    jobs = _wait(invocation, [job["job"] for job in jobs]) if jobs else []
    read = [job for job in jobs if job["outbox"]]  # the others were refused when they were unpacked
    sources = [ResultSet(Path(job["outbox"])) for job in read]
    if refused:
        invocation.answer({"jobs": jobs, "refused": refused})
        sys.exit(exit_codes.FAILED)
    requests, seconds = _estimate(read, sources, invocation.client().get("status"))
    what, was = _whole([*drops])
    failed = [path for path, job in zip(drops, jobs, strict=True) if not job["succeeded"]]
    if invocation.json:
        if ask or failed:
            rows = [document(row, data_of(row)) for source in sources for row in source.rows()]
            estimate = {"requests": requests, "estimate_s": seconds}
            invocation.answer({"sample": rows, "jobs": jobs, "refused": [], **estimate})
        if failed:
            sys.exit(exit_codes.FAILED)
        return None if ask else samples
    for row in (row for source in sources for row in source.rows()):
        _show(row)
    if failed:
        _report(jobs, {})
        of = f" of {clean(', '.join(map(str, failed)))}" if len(jobs) > 1 else ""
        click.echo(f"No request of the sample{of} was answered, so {what} {was} not submitted.", err=True)
        sys.exit(exit_codes.FAILED)
    took = (
        "no answer of the sample says how long they take" if seconds is None else f"about {duration(seconds)} for all"
    )
    click.echo(f"In {what}: {counted(requests, 'request')}; {took}.")
    try:
        if not ask or click.confirm("Run it?", default=False):
            return samples
    except click.Abort:
        click.echo(f"\nNobody answered, so {what} {was} not submitted; --yes submits without asking.", err=True)
        sys.exit(exit_codes.FAILED)
    click.echo(f"{what.capitalize()} {was} not submitted.")
    return None


def _whole(paths: list[Path]) -> tuple[str, str]:
    """What a sample was taken of, in words, and the verb behind it."""
    if len(paths) > 1:
        return f"the {len(paths)} drops", "were"
    return "the folder" if paths[0].is_dir() else "the file", "was"


def _estimate(jobs: list[Document], sources: list[ResultSet], status: Document) -> tuple[int, float | None]:
    """Requests of the whole drops, and the seconds that all slots of the servers that are ready need for them.

    The mean time of the sample's answers is taken for all; None where nothing was answered. It is short where fewer
    answers ran at a time than there are slots.
    """
    slots = sum(server["slots"] or 0 for server in status["servers"] if server["state"] == "ready")
    wholes, seconds = [job["sample_of"] or 0 for job in jobs], []
    for whole, source in zip(wholes, sources, strict=True):
        if times := [row.record["duration_s"] for row in source.rows() if row.record.get("duration_s")]:
            seconds.append(whole * sum(times) / len(times) / max(slots, 1))
    return sum(wholes), sum(seconds) if seconds else None


def _show(row: Row) -> None:
    """A request of a sample: the prompt as it was sent, and the answer."""
    click.secho(clean(f"── {row.name} "), bold=True)
    prompt = str(row.record.get("full_prompt") or row.record.get("prompt") or "")
    if len(prompt) > _PROMPT_CHARACTERS:
        prompt = f"{prompt[:_PROMPT_CHARACTERS]} … ({len(prompt):,} characters)"
    click.echo(clean(prompt, keep="\n\t"))
    click.secho("→ ", nl=False, bold=True)
    parsed = data_of(row)
    answer = str(row.record.get("response", "")) if row.succeeded else row.failure
    if parsed.found:
        answer = json.dumps(parsed.data, ensure_ascii=False, indent=2)
    click.echo(clean(answer, keep="\n\t"))


def _hand_over(
    invocation: Invocation, drops: dict[Path, Document], what: str = "results:"
) -> tuple[list[Document], list[Document]]:
    """Submit each path with its settings; one that is refused does not keep back the others."""
    client = invocation.client()
    jobs, refused = [], []
    for path, settings in drops.items():
        try:
            patience = Patience(waiting.DOWN_S, partial(click.echo, err=True), reached=False)
            job = run(Submitting(client, Drop(path, settings), patience))
        except DaemonDownError:
            raise
        except ObatchError as error:
            refused.append({"path": str(path), "error": {"code": error.code, "message": error.message}})
            if not invocation.json:
                reason = error.message.removeprefix(f"{path.name}: ")
                click.echo(f"{clean(path)} was not accepted: {clean(reason)}", err=True)
            continue
        jobs.append(job)
        if not invocation.json:
            where = place(job["outbox"] or job["refused_to"] or "")
            click.echo(f"{job['job']}  {clean(path)}  {what} {clean(where)}")
            for note in job["notes"]:
                click.echo(f"  note: {clean(note)}")
    return jobs, refused


def _settings(config: Path | None, given: dict[str, Any]) -> Document:
    settings: Document = {}
    if config is not None:
        from obatchd.settings.job import parse_job_settings
        from obatchd.settings.reading import read_toml

        settings = read_toml(config)
        parsed, notes = parse_job_settings(settings, str(config))  # wrong ones are explained before anything is sent
        if parsed.deadline is not None:
            settings["deadline"] = parsed.deadline  # TOML has times, JSON has not
        settings.pop("ollama_instances", None)
        for note in notes:
            click.echo(clean(note), err=True)
    return settings | {key: _meaning(key, value) for key, value in given.items() if value not in (None, ())}


def _meaning(key: str, value: Any) -> Any:
    """The value of an option for the daemon: the content of a file, or a truth value."""
    if key == "template" and value.startswith("@"):
        return _text_of(Path(value[1:]), "--template")
    if key == "format" and value != "json":
        try:
            return json.loads(_text_of(Path(value), "--format"))
        except ValueError as error:
            raise click.BadParameter(f"{clean(value)} is not JSON: {error}", param_hint="--format") from None
    if key == "think":
        return {"true": True, "false": False}.get(value, value)
    return list(value) if isinstance(value, tuple) else value


def _text_of(path: Path, option: str) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except OSError as error:
        reason = error.strerror or str(error)
    raise click.BadParameter(f"{clean(path)} cannot be read: {reason}", param_hint=option)


def _wait(invocation: Invocation, job_ids: list[str]) -> list[Document]:
    """The jobs' last documents, once all are over."""
    client = invocation.client()
    try:
        return waiting.wait(lambda: [client.get("jobs", job_id) for job_id in job_ids], quiet=invocation.json)
    except KeyboardInterrupt:
        first = job_ids[0]
        click.echo(f"The work goes on; see  obatchctl job {first}\nTo end it:  obatchctl cancel {first}", err=True)
        sys.exit(exit_codes.INTERRUPTED)


def _fetch(job: Document, directory: Path) -> Document:
    """Copy a job's results, as the caller's own files; a copy that is there is complete."""
    source = Path(job["outbox"])
    target = directory / source.name
    if target.exists():
        raise ControlError(f"{target} is there already; give another --output-dir", code="exists")
    temporary = directory / f".{source.name}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        # copyfile, not copy: modes of the outbox are the daemon's, the copy is the user's.
        shutil.copytree(source, temporary, copy_function=shutil.copyfile)
        temporary.replace(target)
    except (OSError, shutil.Error) as error:
        several = isinstance(error, shutil.Error)  # one for each file: source, target, and why as text
        reason = error.args[0][0][2].partition("] ")[2] if several else said(error)
        raise ControlError(f"the results in {source} cannot be copied to {directory}: {reason}", code="copy") from None
    return {**job, "copied_to": str(target)}


def _report(jobs: list[Document], told: dict[str, list[str]]) -> None:
    for job in jobs:
        where = job.get("copied_to") or place(job["outbox"] or job["refused_to"] or "")
        click.echo(f"{job['job']}  {styled(job_state(job))}  {counts(job) or 'no requests'}  {clean(where)}")
        notes = [note for note in job["notes"] or [] if note not in told.get(job["job"], ())]
        told_of = (*doubts(job), *(f"note: {clean(note)}" for note in notes), *causes(job), *map(clean, price(job)))
        for line in told_of:
            click.echo(f"  {line}")
