"""One reason of a verdict, and the actions that several of them name."""

from __future__ import annotations

import msgspec

from obatchd.burnin.journal.records import Consequence

DIAGNOSE = (
    "Run dcgmi diag -r 3 (or gpu-burn) on this GPU; if it fails there too, or here again, ask the vendor for a "
    "replacement."
)
COMPARE = (
    "Compare clocks, power limit, PCIe link and temperature with GPUs of its kind; exchange slots to see whether the "
    "slowness follows the card."
)
RETEST = "Run the burn-in again; nothing was found against the GPU itself."
LOW_STRESS = "low_stress"
CORRUPTION = "silent_corruption"
WRONG_RESULT, WRONG_MEMORY = "wrong_result", "wrong_memory"
WRONG = (CORRUPTION, WRONG_RESULT, WRONG_MEMORY)  # seen by a burn-in alone


class Reason(msgspec.Struct, frozen=True):
    """One reason: the observation, and the criterion that it meets."""

    consequence: Consequence
    signal: str
    text: str
    action: str = ""
    at_s: float | None = None  # first seen


# Of a host of a run over several: it could not begin, or was away until the end.
NOT_BEGUN, HOST_LOST = "not_begun", "host_lost"
