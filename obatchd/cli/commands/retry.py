"""``obatchctl retry``: what failed, once more, with other settings where they are given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from obatchd.cli import exit_codes
from obatchd.cli.command import Command, Document, Invocation, clean
from obatchd.cli.commands.submit import finish, is_bad
from obatchd.cli.named import one_job

_TRIED = {
    "failed": "failed",
    "truncated": "was cut at the token limit",
    "ungrounded": "has values that are not in the prompts",
}


@click.command("retry", cls=Command)
@one_job()
@click.option("--model", metavar="NAME", help="Ask this model instead.")
@click.option("--context-length", type=click.IntRange(1), help="Context in tokens.")
@click.option("--max-response-tokens", type=click.IntRange(1), help="Token limit of an answer.")
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True,
    help="Any other setting of a job, or option of Ollama: think=false, temperature=0; repeatable.",
)  # fmt: skip
@click.option(
    "--only", type=click.Choice(tuple(_TRIED)), default="failed",
    help="Ask these again: what failed (the default), or answers that need a look.",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="Return when every request is answered; exit code 1 if one failed.")
@click.option(
    "--output-dir", type=click.Path(file_okay=False, path_type=Path), help="Wait, and copy the results into DIRECTORY."
)
def retry_command(
    invocation: Invocation,
    /,
    job_id: str,
    assignments: tuple[str, ...],
    only: str,
    wait: bool,
    output_dir: Path | None,
    **settings: Any,
) -> None:
    """Ask again, as a new job, what JOB did not answer.

    Requests that an earlier retry of JOB answered are left out. With --only truncated it asks for answers again that
    were cut, say with a longer --max-response-tokens.
    The new job has the settings of JOB. Settings that are given here replace them, also those in a prompt's own line.
    obatchctl results JOB then shows the answers of both jobs as one.
    """
    changes = {name: value for name, value in settings.items() if value is not None}
    changes = _with_assignments(changes, assignments)
    body = ({"settings": changes} if changes else {}) | ({"only": only} if only != "failed" else {})
    job = invocation.client().post("jobs", job_id, "retry", body=body or None)
    if not invocation.json:
        how = ", ".join(f"{name} = {_shown(value)}" for name, value in _flat(changes).items())
        click.echo(clean(f"{job['job']} tries again what {_TRIED[only]} in {job['retry_of']}{how and ', with '}{how}"))
    if not wait and output_dir is None:
        invocation.answer(job)
        return
    [job] = finish(invocation, [job], output_dir)
    if not invocation.json:
        click.echo(f"With the answers before:  obatchctl results {job['retry_of']}")
    invocation.answer(job)
    sys.exit(exit_codes.FAILED if is_bad(job) else exit_codes.OK)


def _with_assignments(changes: Document, assignments: tuple[str, ...]) -> Document:
    changes = dict(changes)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{clean(assignment)} is no KEY=VALUE; write temperature=0", param_hint="--set")
        name, _, option = key.strip().partition(".")
        if option:
            table = changes.setdefault(name, {})
            if not isinstance(table, dict):
                raise click.BadParameter(f"{clean(name)} has another value already", param_hint="--set")
            table[option] = _value(text.strip())
        else:
            changes[name] = _value(text.strip())
    if not isinstance(changes.get("options", {}), dict):
        raise click.BadParameter("write each option as options.temperature=0", param_hint="--set")
    return changes


def _value(text: str) -> Any:
    """JSON as what it is: a number, true or false, a list, a table; anything else is a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _flat(changes: Document) -> Document:
    """Options by their dotted names; a JSON Schema stays one value."""
    flat: Document = {}
    for name, value in changes.items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if name == "options" else {name: value}
    return flat


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
