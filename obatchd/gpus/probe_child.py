"""The probe's own process: it asks for GPUs and readings and may hang without hurting anyone.

It writes frames (four bytes of length, then msgpack) to its socket and ends when the other end is closed, even while
a call into the driver does not return: a thread of its own waits for the end of file. Every frame is sent by the
thread that talks to the driver, so silence means that the driver is silent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from obatchd.errors import GpuError
from obatchd.gpus.model import Gpu, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.source import GpuSource

IDENTITY_EVERY = 60  # slow readings; settings of a card may change
BEAT_S = 2.0  # longest silence of a healthy probe
HEADER_BYTES = 4


class Listing(msgspec.Struct, tag="listing", frozen=True):
    """The GPUs found, and in plain words those that cannot be used."""

    gpus: list[Gpu]
    problems: list[str]


class Absent(msgspec.Struct, tag="absent", frozen=True):
    """There is nothing to read on this host; the process ends after this frame."""

    code: str
    message: str


class Readings(msgspec.Struct, tag="readings", frozen=True):
    """What is read at every poll."""

    readings: list[Reading]
    xids: list[XidEvent]


class Identities(msgspec.Struct, tag="identities", frozen=True):
    """Who the cards are; at first, and from time to time."""

    identities: list[Identity]


class SlowReadings(msgspec.Struct, tag="slow_readings", frozen=True):
    """What changes slowly, and what is wrong with the host's driver: slug and words, empty when nothing is."""

    readings: list[SlowReading]
    host_code: str
    host_message: str


class Beat(msgspec.Struct, tag="beat", frozen=True):
    """Alive, nothing new."""


Frame = Listing | Absent | Readings | Identities | SlowReadings | Beat
decoder = msgspec.msgpack.Decoder(Frame)


def open_nvml() -> GpuSource:
    from obatchd.gpus.nvml.driver import Nvml

    return Nvml()


def open_simulated(directory: Path, count: int) -> GpuSource:
    from obatchd.simulator.gpus import SimulatedGpus

    return SimulatedGpus(directory, count)


def main(channel: socket.socket, open_source: Callable[[], GpuSource], poll_s: float, slow_poll_s: float) -> None:
    """Body of the process. Never returns."""
    # Ctrl-C in a terminal reaches this process too, before the daemon has drained.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(channel,), daemon=True).start()
    with contextlib.suppress(OSError):  # the parent is gone
        _serve(channel, open_source, poll_s, slow_poll_s)
    os._exit(0)


def _end_with_parent(channel: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while channel.recv(1):
            pass
    os._exit(0)


def _serve(channel: socket.socket, open_source: Callable[[], GpuSource], poll_s: float, slow_poll_s: float) -> None:
    try:
        source = open_source()
        gpus = source.gpus()
    except GpuError as error:
        _send(channel, Absent(error.code, error.message))
        return
    _send(channel, Listing(gpus, list(getattr(source, "problems", []))))
    slow_s, slow_count = 0.0, 0
    while True:
        _send(channel, Readings(source.readings(), list(source.xids())))
        if time.monotonic() >= slow_s:
            if slow_count % IDENTITY_EVERY == 0:
                _send(channel, Identities(list(source.identities())))
            _send(channel, SlowReadings(list(source.slow_readings()), *source.host_trouble()))
            slow_s, slow_count = time.monotonic() + slow_poll_s, slow_count + 1
        until_s = time.monotonic() + poll_s
        while (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, BEAT_S))
            _send(channel, Beat())


def _send(channel: socket.socket, frame: Frame) -> None:
    body = msgspec.msgpack.encode(frame)
    channel.sendall(len(body).to_bytes(HEADER_BYTES, "big") + body)
