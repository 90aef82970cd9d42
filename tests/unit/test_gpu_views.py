"""``obatchctl gpus`` and ``gpus show`` in terminals of several widths."""

from __future__ import annotations

from typing import Any

import click
import pytest

from obatchd.cli.commands import gpus as commands
from obatchd.cli.views import text

REASON = "slowed down by hardware (heat) in 4 of the last 10 minutes"
GPU: dict[str, Any] = {
    "uuid": "GPU-5150a7ed-0000-4000-8000-000000000001", "index": 1, "name": "NVIDIA H100 80GB HBM3", "health": "warn",
    "servers": ["gpu1"], "temp_c": 85, "power_w": 655.0, "utilisation_percent": 98, "asleep": False,
    "memory_used_bytes": 18 * 2**30, "memory_total_bytes": 80 * 2**30, "serial": "1650923018411", "slot": "2",
    "reason": REASON, "shared_with": "", "lent_until": None, "action": "", "quarantine": None,
}  # fmt: skip
DOCUMENT = {"state": "ok", "message": "", "host": None, "kernel_log": {"source": "kmsg", "problem": ""}, "gpus": [GPU]}


def overview(monkeypatch: pytest.MonkeyPatch, width: int) -> list[str]:
    monkeypatch.setattr(text, "_width", lambda: width)
    lines = [click.unstyle(line) for line in commands._overview(DOCUMENT)]
    assert max(map(len, lines)) <= width
    return lines


def test_the_reason_keeps_room_where_the_terminal_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    heading, row = overview(monkeypatch, 80)
    assert "REASON" in heading and "SERIAL" not in heading
    assert REASON[:18] in row and "18.0/80.0" in row and "85 °C" in row
    heading, row = overview(monkeypatch, 200)
    assert REASON in row and "1650923018411" in row and "SLOT" in heading


def test_findings_and_events_are_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_width", lambda: 60)
    event = {
        "at": "2026-11-29T09:16:34.100Z",
        "kind": "finding",
        "serial": "S1",
        "uuid": "",
        "slot": "2",
        "text": REASON,
    }
    lines = commands._event_lines(event)
    assert lines[0].startswith("  2026-11-29T09:16:34Z  finding    S1 in slot 2")
    assert max(map(len, lines)) <= 60 and " ".join(" ".join(lines).split()).endswith(REASON)
    finding = {"level": "warn", "text": REASON, "signal": "hw_slowdown", "since": "2026-11-29T09:16:00Z"}
    lines = commands._finding_lines(finding)
    assert max(map(len, lines)) <= 60 and lines[0].startswith("  warn       slowed down")
    assert " ".join(" ".join(lines).split()) == f"warn {REASON} (hw_slowdown, since 2026-11-29T09:16:00Z)"


def test_gpus_of_joined_hosts_are_called_by_host_and_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_width", lambda: 120)
    bad = GPU | {
        "host": "node07",
        "index": 0,
        "servers": ["node07.gpu0"],
        "health": "quarantine",
        "reason": "it smells",
    }
    bad |= {"action": "Look at it.", "quarantine": {"since": None, "by": "rules", "reason": "it smells"}}
    away = GPU | {"host": "node08", "index": 0, "servers": [], "health": "unknown", "temp_c": None}
    log = {"source": "kmsg", "problem": ""}
    hosts = [
        {"name": "node07", "here": True, "reason": "", "state": "ok", "message": "", "host": None, "kernel_log": log},
        {"name": "node08", "here": False, "reason": "silence", "state": "ok", "message": "", "host": None}
        | {"kernel_log": log},
    ]
    document = DOCUMENT | {"state": "absent", "message": "No driver.", "gpus": [bad, away], "hosts": hosts}
    lines = [click.unstyle(line) for line in commands._overview(document)]
    assert lines[0].startswith("GPU") and lines[1].startswith("node07/0") and lines[2].startswith("node08/0")
    assert "host node08 is away: silence" in lines
    assert "When GPU node07/0 is well again:  obatchctl gpus release node07/0" in lines
    assert not any("No driver." in line for line in lines), "no GPU is missed on this machine"
    assert commands._called(bad) == "GPU node07/0"
