"""``submit --sample``: a few random requests first, their answers, and an estimate of the whole."""

from __future__ import annotations

import json
from typing import NamedTuple

import click

from obatchd.cli.command import Document, clean
from obatchd.cli.views.text import duration
from obatchd.results.export import data_of
from obatchd.results.rows import ResultSet, Row

_PROMPT_CHARACTERS = 2000  # of each prompt on the screen; the files have all of it


class Estimate(NamedTuple):
    """Time of the whole, judged by the sample; ``seconds`` is None where nothing was answered."""

    requests: int
    seconds: float | None


def estimate(jobs: list[Document], sources: list[ResultSet], status: Document) -> Estimate:
    """Requests of the whole drops, and the time that all slots of the servers that are ready need for them.

    The mean time of the sample's answers is taken for all. It is short where fewer answers ran at a time than there
    are slots.
    """
    slots = sum(server["slots"] or 0 for server in status["servers"] if server["state"] == "ready")
    requests, seconds, known = 0, 0.0, False
    for job, source in zip(jobs, sources, strict=True):
        whole = job["sample_of"] or 0
        requests += whole
        times = [row.record["duration_s"] for row in source.rows() if row.record.get("duration_s")]
        if times:
            known = True
            seconds += whole * sum(times) / len(times) / max(slots, 1)
    return Estimate(requests, seconds if known else None)


def document(row: Row) -> Document:
    """One row of a sample as JSON."""
    parsed = data_of(row)
    return {**row.record, "data": parsed.data} if parsed.found else row.record


def show(source: ResultSet) -> None:
    """Each request of a sample: the prompt as it was sent, and the answer."""
    for row in source.rows():
        click.secho(clean(f"── {row.name} "), bold=True)
        prompt = str(row.record.get("full_prompt") or row.record.get("prompt") or "")
        if len(prompt) > _PROMPT_CHARACTERS:
            prompt = f"{prompt[:_PROMPT_CHARACTERS]} … ({len(prompt):,} characters)"
        click.echo(clean(prompt, keep="\n\t"))
        click.secho("→ ", nl=False, bold=True)
        click.echo(clean(_answer(row), keep="\n\t"))


def _answer(row: Row) -> str:
    if not row.succeeded:
        return row.failure
    parsed = data_of(row)
    if parsed.found:
        return json.dumps(parsed.data, ensure_ascii=False, indent=2)
    return str(row.record.get("response", ""))


def sentence(expected: Estimate) -> str:
    """The estimate in words."""
    if expected.seconds is None:
        return f"The whole has {expected.requests:,} requests; no answer of the sample says how long they take."
    return f"The whole has {expected.requests:,} requests and takes about {duration(expected.seconds)}."
