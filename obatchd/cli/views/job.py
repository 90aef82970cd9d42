"""One job for people: its page, and what its owner should look at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from obatchd.cli.command import Document, clean
from obatchd.cli.views.status import OUTCOMES, job_state
from obatchd.cli.views.text import duration, place, styled, wrapped
from obatchd.naming import user_name
from obatchd.words import counted, energy, three_digits

_VALUE_CHARACTERS = 300
# What answers may have that counts as success: how it is said of one and of several, and why.
_DOUBTS = {
    "truncated": ("answer was", "answers were", "cut at the token limit"),
    "ungrounded": ("answer has", "answers have", "a value that is not in the prompt"),
}


def counts(job: Document) -> str:
    """How many of its requests ended in which way; failures in red."""
    told = [(name, f"{job[name]:,} {name}") for name in OUTCOMES if job[name]]
    return ", ".join(click.style(text, fg="red") if name == "failed" else text for name, text in told)


def doubts(job: Document, told: Document | None = None) -> Iterator[str]:
    """Successes that need a look, in yellow, with the command that shows them; ``told`` has the counts."""
    known = told or job.get("totals") or {}
    for name, (one, several, what) in _DOUBTS.items():
        if number := known.get(name):
            words = f"{number:,} {one if number == 1 else several} {what}"
            yield click.style(f"{words}:  obatchctl results {clean(job['job'])} --only {name}", fg="yellow")


def waits(job: Document) -> Iterator[str]:
    """Why it waits for servers, if it does."""
    if (reason := job.get("held_up")) and not job["paused"]:
        yield click.style(f"{clean(job['job'])} waits: {clean(reason)}", fg="yellow")


def causes(job: Document) -> Iterator[str]:
    """Why requests of a job got no answer, each with what to do."""
    failures = (job.get("details") or {}).get("failures", {})
    for code, failure in sorted(failures.items(), key=lambda item: -int(item[1]["requests"])):
        yield click.style(f"{failure['requests']:,} {clean(code)}", fg="red") + f": {clean(failure['example'])}"
        yield f"  → {clean(failure['advice'])}"
    unknown = sum(job[name] for name in OUTCOMES[1:]) - sum(failure["requests"] for failure in failures.values())
    if unknown > 0 and failures:
        yield f"{unknown:,} more; errors.jsonl of the results has their causes when the job is over"


def why(document: Document) -> Iterator[str]:
    """Why requests of a job have no answer: the most frequent cause first, each with what to do."""
    ended = ", ".join(f"{document[name]:,} {name}" for name in OUTCOMES if document[name]) or "nothing has ended"
    total = f"of {counted(document['requests'], 'request')} " if document["requests"] is not None else ""
    yield click.style(f"{clean(document['job'])} ({clean(document['state'])}): {total}{ended}", bold=True)
    for cause in document["failures"]:
        where = f", the first in line {cause['line']:,}" if cause["line"] is not None else ""
        yield ""
        yield click.style(f"{cause['requests']:,} {clean(cause['code'])}", fg="red") + where
        yield from wrapped(cause["example"], "  ")
        if cause["advice"]:
            yield from wrapped(cause["advice"], "  → ")
    if not document["failures"]:
        yield "no request failed"


def page(job: Document) -> Iterator[str]:
    """Everything about a job."""
    for key, value in _facts(job):
        if value not in (None, "", [], {}):
            yield f"{key:<21}{value}"
    yield from doubts(job)
    yield from (f"note: {clean(note)}" for note in job["notes"] or [])
    if lines := [*causes(job)]:
        yield from ["", "Requests without an answer:", *(f"  {line}" for line in lines)]


def _facts(job: Document) -> Iterator[tuple[str, Any]]:
    total, totals = job["requests"], job.get("totals") or {}
    yield "job", clean(job["job"])
    yield "name", clean(job["name"])
    yield "label", clean(job.get("label") or "")
    yield "owner", f"{clean(user_name(job['owner']))} ({job['owner']})"
    yield "state", styled(job_state(job))
    yield (
        "requests",
        (f"{total:,}" if total is not None else f"{job['indexed']:,} or more")
        + (f": {counts(job)}" if counts(job) else ""),
    )
    yield "running", job["in_flight"] or None
    yield "accepted", job["accepted_at"]
    yield "finished", job["finished_at"]
    yield "took", duration(totals["wall_s"]) if totals else None
    yield "left", duration(job["eta_s"]) if job["eta_s"] is not None else None
    yield "place in queue", job["position"]
    yield "expected start", job["expected_start_at"]
    yield "expires", job["expires_at"]
    speed = totals or job
    rates = ((speed["requests_per_s"], "requests/s"), (speed["tokens_per_s"], "tokens/s"))
    yield "speed", ", ".join(f"{rate:,.1f} {unit}" for rate, unit in rates if rate is not None)
    yield from _so_far(job)
    if totals:
        yield "tokens", f"{totals['prompt_tokens']:,} of prompts, {totals['response_tokens']:,} of answers"
        yield "GPU-seconds", f"{totals['gpu_s']:,.1f}"
        yield "energy", clean(", ".join(_energy(totals)) or _unknown(totals))
        yield "copied", counted(totals["copied"], "answer") + " of earlier jobs" if totals["copied"] else None
    yield "retry of", job["retry_of"]
    yield "retries", ", ".join(job.get("retries") or [])
    yield "sample of", counted(job["sample_of"], "request") if job["sample_of"] else None
    yield "priority", job["priority"]
    settings = (job.get("details") or {}).get("settings", {}).items()
    yield from ((key.replace("_", " "), _shown(value)) for key, value in settings if not key.endswith("sha256"))
    yield "results", clean(place(job["outbox"])) if job["outbox"] else None
    yield "refused to", clean(place(job["refused_to"])) if job["refused_to"] else None


def _so_far(job: Document) -> Iterator[tuple[str, str | None]]:
    """What a job in work has cost."""
    cost = job.get("cost") or {}
    if cost:
        yield "tokens", f"{cost['prompt_tokens']:,} of prompts, {cost['response_tokens']:,} of answers so far"
        yield "GPU-seconds", f"{cost['gpu_s']:,.1f} so far" if cost["gpu_s"] else None
    if (energy_j := job.get("energy_j")) is not None:
        speed = f", {three_digits(cost['tokens_per_j'])} tokens/J" if cost.get("tokens_per_j") else ""
        yield "energy", f"{energy(energy_j)} so far{speed}"


def price(job: Document) -> Iterator[str]:
    """What the answers of a job that is over cost, in a line; nothing where no GPU of this host made them."""
    totals = job.get("totals") or {}
    if totals.get("gpu_s"):
        cost = [f"{totals['gpu_s']:,.1f} GPU-seconds", *_energy(totals)]
        tokens = f"{counted(totals['prompt_tokens'], 'token')} of prompts, {totals['response_tokens']:,} of answers"
        yield f"cost: {', '.join(cost)}; {tokens}"


def _energy(totals: Document) -> Iterator[str]:
    """The energy of a job, what of it is known; nothing where none is, or an earlier version wrote the totals."""
    if (energy_j := totals.get("energy_j")) is None:
        return
    percent = totals["energy_percent"]
    yield energy(energy_j) + (f" for {percent:.0f} % of the tokens ({totals['energy_note']})" if percent < 99.5 else "")
    if totals["tokens_per_j"] is not None:
        yield f"{three_digits(totals['tokens_per_j'])} tokens/J"


def _unknown(totals: Document) -> str:
    return f"not known ({totals['energy_note']})" if totals.get("energy_note") else ""


def _shown(value: Any) -> Any:
    """A setting on one line; a long one is cut."""
    if value in (None, "", [], {}):
        return None
    if isinstance(value, list):
        return ", ".join(clean(each) for each in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = clean(text.replace("\n", "↵"))
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]}…"
