"""XIDs, the error numbers of the NVIDIA driver, as data.

Meanings and what to do follow NVIDIA's catalogue (https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html).
Where gpud, DCGM, the Kubernetes device plugin and the catalogue disagree about the weight of an XID (63, 94, 109, 32,
38, 69), ours is a choice, and ``[gpu_health] xids`` changes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from obatchd.gpus.model import XidEvent
from obatchd.settings.tables.gpu_health import XidClass

_APPLICATION = {
    8: "GPU stopped processing (idle timeout)",
    11: "bad push buffer",
    13: "graphics engine exception",
    25: "bad push buffer data",
    31: "GPU memory page fault",
    32: "corrupted push buffer",
    43: "GPU stopped processing (channel reset)",
    44: "fault during context switch",
    65: "video encoder exception",
    69: "graphics engine class error",
    80: "corrupted data sent to the GPU",
    109: "context switch timeout",
    137: "NVLink privilege error",
    **dict.fromkeys((39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136)), "copy engine exception"),
    **dict.fromkeys((68, 83, 84, 88, 89, 96, 97, 98), "video decoder exception"),
}
_FATAL = {
    48: "uncorrectable (double-bit) ECC error",
    54: "auxiliary power not connected",
    64: "row remap or page retirement failed",
    79: "GPU fell off the bus",
    95: "uncontained memory error",
    140: "unrecovered ECC error",
    143: "GPU initialisation failed",
    171: "uncorrectable ECC error in DRAM",
    172: "uncorrectable ECC error in SRAM",
}
_RESET = {
    46: "GPU stopped processing (GPU timeout)",
    59: "internal micro-controller error",
    61: "internal micro-controller breakpoint",
    62: "internal micro-controller halt",
    74: "NVLink error",
    110: "security fault",
    119: "GSP did not answer (RPC timeout)",
    120: "GSP error",
    136: "link training failed",
    155: "NVLink error, defined by software",
    156: "resource retired",
    158: "GPU fatal timeout",
    167: "PCIe fatal timeout",
    169: "micro-controller halt",
    173: "fatal C2C link failure",
}
_MEMORY = {
    63: "row remap or page retirement recorded",
    92: "high rate of single-bit ECC errors",
    94: "contained memory error",
    160: "memory channel retired",
}
_WARN = {
    37: "driver firmware error",
    38: "driver firmware error (watchdog)",
    45: "cleanup after an earlier error or the end of a process",
    56: "display engine error",
    57: "error in programming the video memory interface",
    58: "unstable video memory interface",
    **dict.fromkeys((66, 67), "illegal access by the driver"),
    78: "vGPU start error",
    81: "VGA subsystem error",
    93: "InfoROM wear limit",
    121: "C2C link error",
    122: "SPI read failed",
    123: "SPI write failed",
    124: "SPI erase failed",
    125: "InfoROM file system error",
    141: "CUDA fast path error",
    142: "video encoder exception",
    144: "NVLink SAW error",
    145: "NVLink RLW error",
    146: "NVLink TLW error",
    147: "NVLink TREX error",
    148: "NVLink power control error",
    149: "NVLink NETIR error",
    150: "NVLink MSE error",
    151: "key rotation error",
    157: "resource retirement failed",
    159: "CHI non-data error",
    161: "memory channel retirement failed",
}
_IGNORE = {
    **dict.fromkeys((106, 107), "SMBPBI test message"),
    152: "DLA SMMU error",
    153: "DLA timeout",
    154: "recovery action changed; the driver's own verdict is read too",
    **dict.fromkeys(range(162, 167), "power smoothing or confidential computing notice"),
}


class Xid(NamedTuple):
    """One XID: what it means, and its class.

    ``fatal`` and ``reset`` quarantine at once; ``memory`` with the second in a day; ``application`` when it repeats on
    one GPU alone; ``warn`` is shown; ``ignore`` is not.
    """

    number: int
    meaning: str
    kind: XidClass
    known: bool = True


_TABLES: tuple[tuple[XidClass, dict[int, str]], ...] = (
    ("application", _APPLICATION),
    ("fatal", _FATAL),
    ("reset", _RESET),
    ("memory", _MEMORY),
    ("warn", _WARN),
    ("ignore", _IGNORE),
)
XIDS = {number: Xid(number, text, kind) for kind, table in _TABLES for number, text in table.items()}

CLEANUP = 45  # expected when we end a server
# Of the lighter classes, those that fail a burn-in all the same: an unstable memory interface, and 109, which NVIDIA
# answers with a reset and Kubernetes ignores.
BURN_IN_FAILS = frozenset({57, 58, 109})
_NVLINK5 = range(144, 151)  # Blackwell: the text says whether it is fatal


def classify(event: XidEvent, overrides: Mapping[str, XidClass]) -> Xid:
    """The XID of an event, by its number and, where that is not enough, its text.

    One that nobody has listed is a warning, never silently good.
    """
    found = XIDS.get(event.xid, Xid(event.xid, "not in NVIDIA's catalogue", "warn", known=False))
    if kind := overrides.get(str(event.xid)):
        return found._replace(kind=kind, known=True)
    fatal = event.xid in _NVLINK5 and re.search(r"\bFatal\b", event.line)
    return found._replace(kind="reset") if fatal else found
