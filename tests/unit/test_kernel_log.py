from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from task_support import Failures

from obatchd.gpus.kernel_log import KernelLog, Parser, normal_address
from obatchd.gpus.model import XidEvent

XID = "NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


class Heard:
    """Implements :class:`obatchd.gpus.kernel_log.XidListener`."""

    def __init__(self, events: list[XidEvent]) -> None:
        self._events = events

    def xids(self, events: Sequence[XidEvent]) -> None:
        self._events += events


@pytest.mark.parametrize(
    ("message", "xid", "address"),
    [
        (XID, 79, "0000:41:00"),
        ("[ 12.5] NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained: SM", 94, "0000:01:00"),
        ("NVRM: Xid (PCI:0000:C1:00): 145, RLW_REMAP Nonfatal XC0 i0 Link 00 (0x004505c6)", 145, "0000:c1:00"),
        ("NVRM: Xid (PCI:00000001:05:00): 31, pid=99, name=python3, Ch 00000008", 31, "0001:05:00"),
        ("NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.", 79, "0000:18:00"),
        ("NVRM: GPU at PCI:0000:18:00: GPU-5e1b", 0, ""),
        ("NVRM: loading NVIDIA UNIX Open Kernel Module", 0, ""),
        ("EXT4-fs (sda1): mounted, fallen off the bus", 0, ""),
    ],
)  # fmt: skip
def test_lines_of_the_driver(message: str, xid: int, address: str) -> None:
    event = Parser().event(message, 5.0)
    assert (event.xid, event.pci_bus_id, event.line, event.at_s) == (xid, address, message, 5.0) if event else not xid


def test_process_of_an_xid() -> None:
    event = Parser().event("NVRM: Xid (PCI:0000:41:00): 31, pid=4242, name=ollama, Ch 8", 0.0)
    assert event is not None and (event.pid, event.process) == (4242, "ollama")


def test_a_gpu_that_falls_off_in_three_messages() -> None:
    parser = Parser()
    assert parser.event("NVRM: The NVIDIA GPU 0000:18:00.0 (PCI ID: 10de:2330)", 1.0) is None
    assert parser.event("NVRM: installed in this system has", 1.0) is None
    event = parser.event("NVRM: fallen off the bus and is not responding to commands.", 1.0)
    assert event is not None and (event.xid, event.pci_bus_id) == (79, "0000:18:00")


def test_a_name_is_not_remembered_for_long() -> None:
    parser = Parser()
    parser.event("NVRM: GPU at PCI:0000:18:00: GPU-5e1b", 1.0)
    for _ in range(5):
        parser.event("NVRM: something else", 1.0)
    assert parser.event("NVRM: fallen off the bus and is not responding to commands.", 1.0) is None


def test_addresses_of_both_worlds_are_one() -> None:
    assert normal_address("00000000:C1:00.0") == normal_address("0000:c1:00") == "0000:c1:00"


def record(message: str, at_s: float) -> str:
    since_boot_us = (at_s - (time.time() - time.monotonic())) * 1e6
    return f"4,1,{since_boot_us:.0f},-;{message}\n SUBSYSTEM=pci\n"


async def follow(path: Path, since_s: float, events: list[XidEvent], count: int) -> KernelLog:
    log = KernelLog(Heard(events), since_s, path, Failures())
    log.start()
    async with asyncio.timeout(10):
        while len(events) < count:
            await asyncio.sleep(0.01)
    await log.stop()
    return log


async def test_following_passes_over_what_is_old(tmp_path: Path) -> None:
    path, now_s, events = tmp_path / "kmsg", time.time(), list[XidEvent]()
    old, new = record(XID.replace("79", "48"), now_s - 3600), record(XID, now_s)
    path.write_text(old + record("usb 1-1: new device", now_s) + new)
    log = await follow(path, now_s - 60, events, 1)
    assert (log.source, log.problem) == ("kmsg", "")
    assert [event.xid for event in events] == [79] and abs(events[0].at_s - now_s) < 1


async def test_records_that_come_in_pieces_and_messages_of_several_lines(tmp_path: Path) -> None:
    path, events = tmp_path / "kmsg", list[XidEvent]()
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    lines = "NVRM: The NVIDIA GPU 0000:18:00.0\\x0aNVRM: installed in this system has\\x0aNVRM: fallen off the bus and"
    data = (record(XID, time.time()) + record(lines, time.time())).encode()
    log = KernelLog(Heard(events), 0.0, path, Failures())
    log.start()
    for start in range(0, len(data), 50):
        os.write(writer, data[start : start + 50])
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while len(events) < 2:
            await asyncio.sleep(0.01)
    await log.stop()
    os.close(writer)
    assert [event.pci_bus_id for event in events] == ["0000:41:00", "0000:18:00"]


async def test_a_read_that_fails_is_told_until_one_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obatchd.gpus.kernel_log._LOOK_S", 0.01)
    log = KernelLog(Heard([]), 0.0, tmp_path, Failures())  # a directory can be opened, but not read
    log.start()
    async with asyncio.timeout(10):
        while "directory" not in log.problem:
            await asyncio.sleep(0.01)
    assert log.source == ""
    with monkeypatch.context() as healed:
        healed.setattr("obatchd.gpus.kernel_log.os.read", lambda *_: b"")
        await asyncio.sleep(0.1)
        assert (log.source, log.problem) == ("kmsg", "")
    await log.stop()


async def test_without_the_log_the_journal_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journalctl = tmp_path / "journalctl"
    entry = f'{{"MESSAGE": "{XID}", "__REALTIME_TIMESTAMP": "{time.time() * 1e6:.0f}"}}'
    journalctl.write_text(f"#!/bin/sh\ncat <<'END'\n{entry}\n{{broken\nEND\n")
    journalctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    events: list[XidEvent] = []
    await follow(tmp_path / "missing", time.time() - 60, events, 1)
    assert events[0].xid == 79


async def test_a_host_that_shows_nothing_is_called_blind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    log = KernelLog(Heard([]), 0.0, tmp_path / "missing", Failures())
    log.start()
    async with asyncio.timeout(10):
        while "journalctl" not in log.problem:
            await asyncio.sleep(0.01)
    await log.stop()
    assert log.source == "" and "missing" in log.problem


async def test_a_journal_that_shows_nothing_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not read the journal gets no error on its output, and no line."""
    journalctl = tmp_path / "journalctl"
    journalctl.write_text("#!/bin/sh\nexit 0\n")
    journalctl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    log = KernelLog(Heard([]), 0.0, tmp_path / "missing", Failures())
    log.start()
    async with asyncio.timeout(10):
        while "systemd-journal" not in log.problem:
            await asyncio.sleep(0.01)
    await log.stop()
    assert log.source == ""


async def test_a_log_that_nobody_follows_any_more_is_told(tmp_path: Path) -> None:
    class Deaf:
        def xids(self, events: Sequence[XidEvent]) -> None:
            raise KeyError(events[0].pci_bus_id)

    path, failures = tmp_path / "kmsg", Failures()
    path.write_text(record(XID, time.time()))
    log = KernelLog(Deaf(), 0.0, path, failures)
    log.start()
    async with asyncio.timeout(10):
        while not failures:
            await asyncio.sleep(0.01)
    assert failures == ["kernel-log: KeyError: '0000:41:00'"]
    await log.stop()
