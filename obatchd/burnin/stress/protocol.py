"""What a run and the stress process of one GPU say to each other, as frames of :mod:`obatchd.frames`.

Times are seconds since the epoch, counts are those since the last frame of that kind. While something runs and the
device returns, :class:`Work` comes at least every ``WORK_EVERY_S``; longer silence means that a call into the driver
hangs.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Load = Literal["compute", "memory", "links"]
LinkKind = Literal["to_host", "from_host", "to_peer"]
WORK_EVERY_S = 2.0
SILENT_S = 30.0  # the process hangs in the driver; while it opens the device it may take longer
WRONG_A_MINUTE = 20  # places told in words; all are counted


class Begin(msgspec.Struct, tag="begin", frozen=True):
    """Load the device from now on; replaces what runs. Compute and memory run together, links are measured first.

    ``memory_percent`` is of what is free when it begins. Of ``precisions`` those that the device has are used; none
    given means all of them. ``seed`` makes the contents of matrices and memory: cards of one kind get the same.
    """

    loads: list[Load]
    memory_percent: float
    precisions: list[str]
    seed: int


class End(msgspec.Struct, tag="end", frozen=True):
    """Stop what runs, free all memory of the device, and stay."""


class Leave(msgspec.Struct, tag="leave", frozen=True):
    """Stop what runs, and end."""


class Opened(msgspec.Struct, tag="opened", frozen=True):
    """The device can be used: the first frame, unless it is :class:`Trouble`."""

    library: str  # that computes: "numpy", "cuBLAS" …
    version: str
    device: str  # its name, for people
    precisions: list[str]
    free_bytes: int
    total_bytes: int


class Work(msgspec.Struct, tag="work", frozen=True, kw_only=True, omit_defaults=True):
    """What a load did in the last ``span_s``, which may be nothing: a pause of the memory load, say."""

    at_s: float
    load: Load
    span_s: float
    precision: str = ""  # of compute
    operations: int = 0  # additions and multiplications
    operating_s: float = 0.0  # of the span in which the device multiplied: operations by it are the speed
    wrong: int = 0  # tiles, or words of memory
    bytes_written: int = 0
    bytes_checked: int = 0
    accessing_s: float = 0.0  # of the span in which the device wrote and checked
    covered_bytes: int = 0  # checked at least once since this load began
    free_bytes: int = 0  # of memory of the device, when it began
    passes: int = 0  # whole passes of a pattern over all of it
    # Of the first result, to which all others are compared: the same on every card of one kind with one library.
    first: str = ""


class Wrong(msgspec.Struct, tag="wrong", frozen=True, omit_defaults=True):
    """A wrong result, or a wrong word of memory; at most ``WRONG_A_MINUTE``."""

    at_s: float
    load: Load
    place: str  # "tile 12,3 of 64×64, FP16", "address 0x7f0000000040, bit 5"
    pattern: str  # of memory; or "differs from the first result"
    expected: str
    found: str
    times: int = 1  # at this place


class Bandwidth(msgspec.Struct, tag="bandwidth", frozen=True, omit_defaults=True):
    """One measurement; ``peer`` is its UUID."""

    at_s: float
    kind: LinkKind
    peer: str
    bytes_per_s: float


class Trouble(msgspec.Struct, tag="trouble", frozen=True):
    """The loads that ran have ended, by themselves or because the device could not go on.

    Codes: ``no_library`` (to install), ``no_device``, ``no_precision`` (none of those asked for), ``out_of_memory``,
    ``device_lost``, ``launch_failed``, ``bad_memory`` (an uncorrectable error that the hardware reported), ``defect``.
    After ``no_library``, ``no_device``, ``device_lost``, ``launch_failed``, ``bad_memory`` and ``defect`` the process
    ends: a context of CUDA that failed cannot be used again.
    """

    code: str
    text: str


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """A load has ended because it was told so, or is done (links)."""

    load: Load


class Beat(msgspec.Struct, tag="beat", frozen=True):
    """Alive; nothing runs."""


ToProcess = Begin | End | Leave
FromProcess = Opened | Work | Wrong | Bandwidth | Trouble | Ended | Beat
to_process: msgspec.msgpack.Decoder[ToProcess] = msgspec.msgpack.Decoder(ToProcess)
from_process: msgspec.msgpack.Decoder[FromProcess] = msgspec.msgpack.Decoder(FromProcess)
