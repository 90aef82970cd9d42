"""Reads the host as a whole, and its jobs."""

from __future__ import annotations

import time
from collections import Counter

from obatchd import __version__
from obatchd.delivery.advice import CODES
from obatchd.dispatch.holds import DRAINING, PAUSED, STOPPING
from obatchd.engine.engine import Engine
from obatchd.gpucare.policy import QUARANTINE
from obatchd.jobs.model import Outcome
from obatchd.live.job import LiveJob
from obatchd.metrics.sheet import NONE, Sheet
from obatchd.spool.layout import FreeSpace

STATES = ("running", "paused", "draining", "drained", "degraded", "stopping")
HOLDS = (
    PAUSED, DRAINING, STOPPING, QUARANTINE, "disk", "store", "outbox", "intake", "start", "backlog", "burnin",
)  # fmt: skip
ENDINGS = ("done", "failed", "cancelled", "expired")
_SOON_S = 1800.0  # a job that does not get on is late so long before its deadline; the alert comes ten minutes later
_MOST_OWNERS = 100
_NOT_LOOKED = FreeSpace(0, 0)


def read_host(sheet: Sheet, engine: Engine, state: str, started_s: float) -> None:
    sheet.put("obatch_build_info", 1, NONE.and_("version", __version__))
    sheet.put("obatch_start_time_seconds", started_s)
    sheet.one_of("obatch_state", state, STATES, "state")
    held = engine.work.holds.reasons
    for reason in dict.fromkeys((*HOLDS, *sorted(held))):
        sheet.put("obatch_hold", float(reason in held), NONE.and_("reason", reason))
    free = engine.conditions.free
    if free != _NOT_LOOKED:
        sheet.put("obatch_disk_free_bytes", free.bytes)
        sheet.put("obatch_disk_free_inodes", free.inodes if free.inodes >= 0 else None)
    sheet.put("obatch_disk_low", float(engine.conditions.disk_low))
    intake = engine.intake
    if intake.scanned.is_set():
        report = intake.report
        blocked = len(report.blocked) - report.limited  # by limits of their owners, which is nobody's trouble
        drops = {
            "settling": report.settling,
            "blocked": blocked,
            "limited": report.limited,
            "waiting": intake.held_back,
        }
        sheet.counts("obatch_drops", drops, "state")
    sheet.put("obatch_drops_refused_total", intake.refused)


def read_jobs(sheet: Sheet, engine: Engine, *, owners: bool) -> int:
    """Returns how many are held up by bad answers of servers."""
    jobs, counters = engine.jobs, engine.work.counters
    now_s, publishing, paused, held_up, late = time.time(), 0, 0, 0, 0
    for live in jobs.values():  # there may be ten thousand
        if live.publishing:
            publishing += 1
        elif live.paused:
            paused += 1
        if live.hindrance:
            held_up += 1
        if live.frozen.deadline and _is_late(live, now_s):
            late += 1
    running = len(jobs) - publishing - paused
    sheet.counts("obatch_jobs", {"running": running, "paused": paused, "publishing": publishing}, "state")
    sheet.counts("obatch_jobs_finished_total", {ending: counters.jobs[ending] for ending in ENDINGS}, "result")
    sheet.put("obatch_jobs_held_up", held_up)
    sheet.put("obatch_jobs_late", late)
    if jobs:  # keys are given in the order of acceptance
        sheet.put("obatch_job_oldest_seconds", max(0.0, now_s - jobs[min(jobs)].row.accepted_s))
    sheet.put("obatch_requests_queued", engine.queue.total())
    sheet.put("obatch_results_waiting", engine.committer.backlog)
    sheet.counts("obatch_requests_total", {each.value: counters.requests[each.value] for each in Outcome}, "outcome")
    # Known ones from the beginning: rate() does not see how a series gets its first value.
    failures = dict.fromkeys(CODES, 0) | counters.failures
    sheet.counts("obatch_request_failures_total", failures, "code")
    sheet.histogram("obatch_commit_seconds", engine.committer.commits)
    if owners:
        _read_owners(sheet, engine)
    return held_up


def _is_late(live: LiveJob, now_s: float) -> bool:
    """Whether a job with a deadline will not be over in time, as it goes now."""
    if live.ending or live.complete or (expires_s := live.expires_s) is None:
        return False
    left, rate = live.requests - live.finished, live.requests_per_s()
    return now_s + (left / rate if rate else _SOON_S) > expires_s


def _read_owners(sheet: Sheet, engine: Engine) -> None:
    """Of those with the most requests."""
    jobs, requests = Counter[int](), Counter[int]()
    for live in engine.jobs.values():
        jobs[live.row.owner] += 1
        requests[live.row.owner] += live.requests - live.finished
    for owner, unfinished in requests.most_common(_MOST_OWNERS):
        labels = NONE.and_("uid", str(owner))
        sheet.put("obatch_owner_jobs", jobs[owner], labels)
        sheet.put("obatch_owner_requests_unfinished", unfinished, labels)
