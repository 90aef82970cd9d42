"""The probe's own process: it asks for GPUs and readings and may hang without hurting anyone.

A child (:mod:`obatchd.child`) that ends when the other end of its socket is closed, even while a call into the driver
does not return. Every message is sent by the thread that talks to the driver, so silence means that the driver is
silent.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import msgspec

from obatchd import child, frames
from obatchd.errors import GpuError
from obatchd.gpus.model import Gpu, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.source import GpuSource

IDENTITY_EVERY = 60  # slow readings; settings of a card may change
BEAT_S = 2.0  # longest silence of a healthy probe


class Listing(msgspec.Struct, tag="listing", frozen=True):
    """The GPUs found, one at least, and in plain words those that cannot be used."""

    gpus: list[Gpu]
    problems: list[str]


class Absent(msgspec.Struct, tag="absent", frozen=True):
    """There is nothing to read on this host; the process ends after this frame."""

    code: str
    message: str


class Readings(msgspec.Struct, tag="readings", frozen=True):
    """The readings of every poll."""

    readings: list[Reading]
    xids: list[XidEvent]


class Identities(msgspec.Struct, tag="identities", frozen=True):
    """The identities of the cards; at first, and from time to time."""

    identities: list[Identity]


class SlowReadings(msgspec.Struct, tag="slow_readings", frozen=True):
    """What changes slowly, and what is wrong with the host's driver: slug and words, empty when nothing is."""

    readings: list[SlowReading]
    host_code: str
    host_message: str


class Beat(msgspec.Struct, tag="beat", frozen=True):
    """Alive, nothing new."""


Message = Listing | Absent | Readings | Identities | SlowReadings | Beat
decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def main(connection: socket.socket, open_source: Callable[[], GpuSource], poll_s: float, slow_poll_s: float) -> None:
    """The work of the process."""
    child.end_with_parent(connection)
    frames.send(connection, Beat())  # it runs: for what follows the driver may be to blame
    try:
        source = open_source()
        gpus = source.gpus()
    except GpuError as error:
        frames.send(connection, Absent(error.code, error.message))
        return
    except ImportError as error:
        words = f"NVML cannot be asked, because obatchd's installation is incomplete ({error}): install it again."
        frames.send(connection, Absent("broken_install", words))
        return
    problems = list(getattr(source, "problems", []))
    if not gpus:
        words = " ".join(problems) or "The NVIDIA driver is there but shows no GPU."
        frames.send(connection, Absent("no_gpu", words))
        return
    frames.send(connection, Listing(gpus, problems))
    slow_s, slow_count = 0.0, 0
    while True:
        frames.send(connection, Readings(source.readings(), list(source.xids())))
        if time.monotonic() >= slow_s and not source.resting():
            if slow_count % IDENTITY_EVERY == 0:
                frames.send(connection, Identities(list(source.identities())))
            frames.send(connection, SlowReadings(list(source.slow_readings()), *source.host_trouble()))
            slow_s, slow_count = time.monotonic() + slow_poll_s, slow_count + 1
        until_s = time.monotonic() + poll_s
        while (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, BEAT_S))
            frames.send(connection, Beat())
