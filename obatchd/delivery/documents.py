"""The JSON documents about a job: its status while it runs, its summary at the end."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from obatchd import __version__
from obatchd.delivery.advice import advice
from obatchd.delivery.energy import cost_so_far, energy_of
from obatchd.dispatch.protocol import JobContext, context_sha256
from obatchd.documents import excerpt
from obatchd.documents.jobs import (
    Counts,
    DropFacts,
    EarlierSummary,
    Failure,
    JobDetails,
    JobDocument,
    JobTotals,
    SettingsUsed,
    Summary,
)
from obatchd.jobs.model import JobState, by_outcome, round_context
from obatchd.jobs.store import JobRow
from obatchd.live.job import LiveJob
from obatchd.live.models import Models
from obatchd.spool.layout import Layout
from obatchd.spool.outbox import Totals
from obatchd.times import instant, since
from obatchd.words import shortened

_EXAMPLE_CHARACTERS = 300  # of a failure, in the index
_ENERGY = ("energy_j", "energy_percent", "energy_note", "tokens_per_j")
# Given by place: by name takes three times as long, and a flood has ten thousand jobs.
_Head = tuple[
    str, str, int, str, str | None, str, str | None, str | None, list[str], str | None, int | None
]  # fmt: skip


def in_work(live: LiveJob) -> str:
    """The state of a job that is not over, in a word."""
    return "cancelling" if live.cancelled else live.state().value


def job_document(live: LiveJob, in_flight: int, all_held_up: str = "") -> JobDocument:
    """A job in progress, as ``status.json`` and the control API show it; ``all_held_up``: why no job gets on."""
    rate, counts = live.requests_per_s(), live.counts
    left = live.requests - live.finished
    turn = None if live.cancelled else live.turn
    document = JobDocument(
        *_head(live.row, in_work(live)),
        paused=live.paused,
        requests=live.requests if live.indexed else None,
        indexed=live.requests,
        succeeded=counts["succeeded"],
        failed=counts["failed"],
        cancelled=counts["cancelled"],
        expired=counts["expired"],
        in_flight=in_flight,
        requests_per_s=round(rate, 2),
        tokens_per_s=round(live.tokens_per_s(), 1),
        eta_s=round(left / rate, 1) if rate and live.indexed else None,
        position=turn.position if turn else None,
        expected_start_at=instant(turn.starts_s) if turn else None,
        expires_at=instant(live.expires_s),
        outbox=str(live.outbox),
        energy_j=round(live.energy_j, 1) if live.energy_tokens else msgspec.UNSET,
        cost=cost_so_far(live) or msgspec.UNSET,
        label=live.row.job_label or msgspec.UNSET,
    )
    waits = not (live.paused or live.publishing or live.ending)
    if held_up := (all_held_up if waits else "") or live.hindrance:
        document.notes = [*document.notes, f"it waits: {held_up}"]
        document.held_up = held_up
    return document


def last_status(live: LiveJob, summary: Summary) -> JobDocument:
    """The last ``status.json`` of a job. It is written before the summary, so that no crash leaves an older one."""
    document = job_document(live, 0)
    document.state, document.finished_at, document.eta_s = summary.state, summary.finished_at, None
    document.totals = _totals(msgspec.to_builtins(summary))
    document.energy_j = document.cost = msgspec.UNSET
    return document


def finished_document(row: JobRow, layout: Layout) -> JobDocument:
    summary = row.summary or {}
    requests, counts = summary.get("requests", 0), by_outcome(summary)
    refused = row.state is JobState.REFUSED
    place = str((layout.failed_dir if refused else layout.outbox_dir)(row.job, row.name, row.owner))
    return JobDocument(
        *_head(row, row.state.value),
        paused=False,
        requests=requests,
        indexed=requests,
        succeeded=counts["succeeded"],
        failed=counts["failed"],
        cancelled=counts["cancelled"],
        expired=counts["expired"],
        outbox=None if refused else place,
        refused_to=place if refused else None,
        label=row.job_label or msgspec.UNSET,
        totals=_totals(summary) if "response_tokens" in summary else None,
    )


def _totals(summary: dict[str, Any]) -> JobTotals:
    wall_s, tokens = summary["wall_s"], summary["response_tokens"]
    asked = summary["succeeded"] + summary["failed"]
    return JobTotals(
        wall_s,
        round(asked / wall_s, 2) if wall_s else None,
        round(tokens / wall_s, 2) if wall_s else None,
        summary["prompt_tokens"],
        tokens,
        summary["gpu_s"],
        summary["truncated"],
        summary["ungrounded"],
        summary["copied"],
        *(summary[name] for name in _ENERGY if name in summary),  # all or none
    )


def job_details(row: JobRow, live: LiveJob | None) -> JobDetails:
    """More about one job; ``live`` where it is not over."""
    failures = msgspec.convert((row.summary or {}).get("failures", {}), dict[str, Failure])
    if live is not None and not failures:
        failures = {code: Failure(count, first, advice(code)) for code, (count, first) in live.failures.items()}
    return JobDetails(_settings_used(row, [round_context(row.frozen.context_length)]), failures)


def counts_of(summary: Summary | EarlierSummary) -> Counts:
    """The part of a summary that the index keeps."""
    cut = {
        code: msgspec.structs.replace(failure, example=shortened(failure.example, _EXAMPLE_CHARACTERS))
        for code, failure in summary.failures.items()
    }
    model = next(iter(summary.models)) if len(summary.models) == 1 else ""
    return excerpt(Counts, summary, failures=cut, model=model)


def _head(row: JobRow, state: str) -> _Head:
    """The first fields of a job's document."""
    return (
        row.job,
        row.label,
        row.owner,
        state,
        row.frozen.model or None,
        row.frozen.priority,
        instant(row.accepted_s),
        instant(row.finished_s),
        row.notes,
        row.retry_of,
        row.settings.sample_of,
    )


def summary_of(live: LiveJob, totals: Totals, models: Models) -> Summary:
    """``summary.json`` of a job whose results are written."""
    row, finished_s = live.row, time.time()
    wall_s = max(since(row.accepted_moment, row.accepted_s), 1e-6)
    counts, energy = by_outcome(totals.outcomes), energy_of(live, totals, models)
    return Summary(
        job=row.job,
        name=row.label,
        owner=row.owner,
        state=JobState.DONE.value,
        cancelled_by_user=live.cancelled,
        requests=sum(counts.values()),
        **counts,
        truncated=totals.truncated,
        copied=totals.copied,
        ungrounded=totals.ungrounded,
        failures={code: Failure(f.requests, f.example, advice(code)) for code, f in totals.failures.items()},
        accepted_at=instant(row.accepted_s),
        finished_at=instant(finished_s),
        wall_s=round(wall_s, 3),
        serial_s=round(totals.serial_s, 3),
        speedup=round(totals.serial_s / wall_s, 2),
        prompt_tokens=totals.prompt_tokens,
        prompt_tokens_reused_estimate=totals.prompt_tokens_reused_estimate,
        response_tokens=totals.response_tokens,
        tokens_per_s=round(totals.response_tokens / wall_s, 2),
        servers={name: use.document(models.server_version(name), wall_s) for name, use in totals.servers.items()},
        models={name: models.facts(name, totals.servers_of(name)) for name in totals.models},
        drop=DropFacts(row.digest, row.size),
        settings=_settings_used(
            row, live.asked_before.union(lane.profile.context_length for lane in live.lanes.values())
        ),
        notes=row.notes,
        retry_of=row.retry_of,
        obatchd_version=__version__,
        label=row.job_label or msgspec.UNSET,
        energy_j=energy.energy_j,
        energy_percent=energy.percent,
        energy_note=energy.note,
        tokens_per_j=energy.tokens_per_j,
        gpu_s=round(sum(busy_s * models.gpus_per_slot(name) for name, busy_s in totals.busy_s.items()), 3),
    )


def _settings_used(row: JobRow, context_lengths: Iterable[int]) -> SettingsUsed:
    """The settings of a job whose requests ask for these lengths of the context, in tokens."""
    frozen, own = row.frozen, row.settings
    context = excerpt(JobContext, frozen, job=row.key, name=row.job)
    system_message = frozen.system_message
    return SettingsUsed(
        model=frozen.model or None,
        context_length=sorted(context_lengths),
        options=frozen.options,
        max_response_tokens=frozen.max_response_tokens,
        context_sha256=context_sha256(context),
        format=frozen.format,
        in_source=frozen.in_source,
        think=frozen.think,
        system_message_sha256=hashlib.sha256(system_message.encode()).hexdigest() if system_message else None,
        system_message=system_message or None,
        template=own.template,
        text_column=own.text_column,
        id_column=own.id_column,
        encoding=own.encoding,
        lines=own.lines,
        sample=own.sample,
        repeat=own.repeat or msgspec.UNSET,
    )
