"""What parts of the path of a drop share, made for a test: a real spool and store, a recorded owner and alarms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from settings_support import in_force
from task_support import Failures

from obatchd.documents.alarms import Alarm
from obatchd.jobs.lane import Lane, Pending
from obatchd.jobs.queue import JobQueue
from obatchd.jobs.store import JobRow, Store
from obatchd.live.job import LiveJob
from obatchd.live.work import Work
from obatchd.spool.layout import Layout


class Alarms(list[str]):
    """The kinds of the alarms that were raised. Implements :class:`obatchd.documents.alarms.Announcer`."""

    def announce(self, alarm: Alarm) -> None:
        self.append(alarm.kind)


class Outcomes(list[Any]):
    """The outcomes that were given. Implements :class:`obatchd.live.work.Outcomes`."""

    def finish(self, result: Any) -> None:
        self.append(result)


class NoFeeder:
    """Implements :class:`obatchd.jobs.queue.LaneFeeder`: remembers the lanes that run low, and reads nothing."""

    def __init__(self) -> None:
        self.fetches: list[Lane] = []

    def fetch(self, lane: Lane, queue: JobQueue) -> None:
        self.fetches.append(lane)

    def ready(self, lane: Lane, pending: Any, queue: JobQueue) -> list[Pending]:
        return list(pending)


def make_work(directory: Path, **tables: Any) -> Work:
    """On a spool in ``directory``; ``tables`` are tables of the settings. Close ``work.store`` at the end."""
    layout = Layout.open(directory / "spool")
    settings = in_force(**tables)
    return Work(settings, layout, Store(layout.work, settings), Failures(), Alarms())


def add_live(work: Work, row: JobRow) -> LiveJob:
    """Make a job of the store live."""
    live = work.jobs[row.key] = LiveJob(row, work.outbox_of(row))
    return live
