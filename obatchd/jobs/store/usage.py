"""The work that was done for each owner, month by month: sums alone, which outlive the jobs that they are made of.

A job is added in the transaction that makes it done, and once: the first time that its final counts are entered.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from typing import Any

import msgspec

_TABLE = """
CREATE TABLE IF NOT EXISTS usage (
    owner INTEGER, month TEXT, requests INTEGER NOT NULL, succeeded INTEGER NOT NULL, failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL, expired INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    response_tokens INTEGER NOT NULL, gpu_s REAL NOT NULL,{energy} PRIMARY KEY (owner, month)
) WITHOUT ROWID;
"""
USAGE_TABLE_4 = _TABLE.format(energy="")  # of version 4
USAGE_TABLE = _TABLE.format(energy=" energy_j REAL NOT NULL DEFAULT 0,")
USAGE_ENERGY = "ALTER TABLE usage ADD COLUMN energy_j REAL NOT NULL DEFAULT 0;"


class UsageRow(msgspec.Struct, frozen=True):
    """The sums of the jobs of one owner that ended in one month."""

    owner: int  # uid
    month: str  # 2026-11, in UTC
    requests: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    prompt_tokens: int
    response_tokens: int
    gpu_s: float  # of each answer, the share of its server's GPUs that its slot had
    energy_j: float  # of GPUs, as far as they tell it


_COLUMNS = ", ".join(UsageRow.__struct_fields__)
USAGE = (
    f"SELECT {_COLUMNS} FROM usage WHERE (? IS NULL OR owner = ?) AND (? IS NULL OR month = ?)"
    " ORDER BY month DESC, owner"
)
_SUMS = UsageRow.__struct_fields__[2:]
_ADD = (
    f"INSERT INTO usage ({_COLUMNS}) SELECT owner, ?, {', '.join('?' * len(_SUMS))} FROM jobs"
    " WHERE key = ? AND summary IS NULL"
    f" ON CONFLICT DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in _SUMS)}"
)


def add_usage(cursor: sqlite3.Cursor, key: int, ended_s: float, counts: Mapping[str, Any]) -> None:
    """Add the final counts of a job that ended at ``ended_s`` (epoch), unless it has such counts already."""
    month = time.strftime("%Y-%m", time.gmtime(ended_s))
    cursor.execute(_ADD, (month, *(counts.get(name) or 0 for name in _SUMS), key))
