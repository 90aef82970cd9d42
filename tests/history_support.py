"""A made-up ``history.db``: days of readings, work and events of simulated GPUs, as a daemon would have kept them."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path

from obatchd.documents.gpus import GpuEvent
from obatchd.gpus.history import History

UUID = "GPU-5150a7ed-0000-4000-8000-{:012d}".format  # as the simulator has them
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400


def make_history(path: Path, gpus: int, now_s: float, days: int = 90) -> None:
    """Every day from nine to six the GPUs work; the last one of them is off on every second day, and gets hot."""
    kept = History(path)
    last, serial = UUID(gpus - 1), f"SIM{gpus - 1:010d}"
    for hours, kind, text in ((30, "finding", "83 °C"), (20, "xid", "XID 79"), (19.9, "quarantine", "XID 79"),
                              (10, "release", "released by an administrator")):  # fmt: skip
        kept.health_event(GpuEvent(now_s - hours * _HOUR_S, last, serial, str(gpus), kind, "", "", text))
    kept.close()
    minutes_s = range(int(now_s - 2 * _DAY_S) // _HOUR_S * _HOUR_S, int(now_s) // _MINUTE_S * _MINUTE_S, _MINUTE_S)
    hours_s = range(int(now_s - days * _DAY_S) // _HOUR_S * _HOUR_S, minutes_s.start, _HOUR_S)
    with closing(sqlite3.connect(path)) as database, database:
        for step_s, times_s in ((_MINUTE_S, minutes_s), (_HOUR_S, hours_s)):
            for at_s in times_s:
                load = max(0.0, math.sin((at_s % _DAY_S / _DAY_S - 0.375) / 0.375 * math.pi))
                for gpu in range(gpus):
                    if gpu == gpus - 1 and gpus > 1 and (at_s // _DAY_S) % 2:
                        continue
                    mine = load * (0.6 + 0.4 * math.sin(gpu + at_s / 5000) ** 2)
                    database.execute(
                        "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (UUID(gpu), step_s, at_s, f"SIM{gpu:010d}", str(gpu + 1), step_s // 2, 35 + 40 * mine,
                         38 + 45 * mine, 60 + 580 * mine, 100 * mine, 4e9 + 7e10 * mine, 1200 + 780 * mine,
                         0.2 if mine > 0.95 else 0.0),
                    )  # fmt: skip
                    if mine:
                        work = (
                            f"gpu{gpu}",
                            step_s,
                            at_s,
                            step_s // 10,
                            step_s,
                            100 * mine * step_s,
                            0,
                            0,
                            0,
                            8 * mine,
                            0,
                        )
                        database.execute(f"INSERT INTO work VALUES ({', '.join('?' * 11)})", work)
                done = (load * gpus * 60 * step_s, load * gpus * step_s / 2, load * step_s / 50)
                state = (40_000 * load, 7 * load * gpus, 2 * load)
                database.execute(
                    f"INSERT INTO work VALUES ({', '.join('?' * 11)})",
                    ("", step_s, at_s, step_s // 10, step_s, *done, *state),
                )
