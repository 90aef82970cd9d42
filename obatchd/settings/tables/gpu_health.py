"""``[gpu_health]`` and ``[burnin]``: limits of :mod:`obatchd.gpus.rules` and of burn-ins, with where they come from."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from obatchd.settings.base import Count, Live, Natural, NotNegative, Positive, Section, setting

XidClass = Literal["fatal", "reset", "memory", "application", "warn", "ignore"]
Share = Annotated[float, Field(ge=0, le=1)]


def _numbers(value: dict[str, XidClass]) -> dict[str, XidClass]:
    for number in value:
        if not re.fullmatch(r"[1-9]\d{0,3}", number):
            raise ValueError(f'"{number}" is no XID: the names are numbers, e.g. {{"63" = "warn"}}')
    return value


class GpuHealthSettings(Section):
    """When a GPU is warned about, taken out of use (quarantine), or fails a burn-in. See also docs/gpu-health.md."""

    lost_polls: Live[Count] = setting(
        2, "A GPU goes into quarantine after so many readings in a row that say that it is gone."
    )

    # XIDs
    xids: Live[Annotated[dict[str, XidClass], AfterValidator(_numbers)]] = setting(
        {},
        "Classes for XIDs (error numbers of the NVIDIA driver), which replace obatchd's own, such as "
        '{"63" = "memory", "109" = "application"}. "fatal" and "reset": the GPU goes into quarantine '
        'at once; "memory": at the second XID in a day; "application": when it repeats on this GPU '
        'alone; "warn": obatchd warns; "ignore": nothing.',
    )
    repeats: Live[Count] = setting(
        3,
        "So many XIDs of applications, or crashes of its server, in repeat_s count against a GPU, "
        "if no other GPU has them.",
    )
    repeat_s: Live[Positive] = setting(3600, "How long obatchd counts XIDs and crashes for repeats.")
    memory_xids: Live[Count] = setting(2, "A GPU goes into quarantine after so many XIDs of class memory in 24 hours.")

    # Memory
    ecc_uncorrected: Live[Natural] = setting(
        0, "A GPU goes into quarantine when it has more new uncorrectable ECC errors than this."
    )
    ecc_corrected_per_h: Live[Natural] = setting(
        100, "obatchd warns when a GPU has more corrected ECC errors in an hour than this."
    )
    ecc_corrected_rising: Live[Count] = setting(
        10,
        "obatchd warns when the corrected ECC errors of a GPU at least doubled from one 20 minutes to the next, twice "
        "in a row, and were at least so many in the last 20 minutes.",
    )
    ecc_corrected_per_s: Live[Count] = setting(
        1000,
        "A GPU goes into quarantine when it has more corrected ECC errors per second than this in two readings in a "
        "row.",
    )
    ecc_corrected_per_run: Live[Natural] = setting(
        10_000, "A burn-in fails a GPU that has more corrected ECC errors in the run than this."
    )
    sram_uncorrected: Live[Natural] = setting(
        4,
        "obatchd warns when a card has had more uncorrectable SRAM errors in its life than this; vendors "
        "often replace it then (RMA).",
    )
    remapped_rows: Live[Count] = setting(
        512,
        "obatchd warns when so many memory rows of a GPU, or more, were remapped for "
        "uncorrectable errors (a limit of DCGM).",
    )
    retired_pages: Live[Count] = setting(
        63, "obatchd warns when a card older than Ampere has so many retired memory pages, or more (a limit of DCGM)."
    )

    # Slowdowns and heat
    slowdown_share: Live[Share] = setting(
        0.6,
        "A GPU goes into quarantine when its hardware slowed it down in this share of the last "
        "slowdown_minutes (a limit of gpud).",
    )
    slowdown_minutes: Live[int] = setting(10, "How far back slowdown_share looks.", ge=1, le=60)
    slowdown_run_share: Live[Share] = setting(
        0.01, "A burn-in fails a GPU that its hardware slowed down in more than this share of the time under load."
    )
    slowdown_run_s: Live[NotNegative] = setting(
        60, "A burn-in fails a GPU that its hardware slowed down for longer than this in all."
    )
    thermal_share: Live[Share] = setting(
        0.01, "obatchd warns when the driver slowed a GPU down for heat in more than this share of the time under load."
    )
    thermal_run_share: Live[Share] = setting(
        0.10,
        "A burn-in fails a GPU that the driver slowed down for heat in more than this share of the time under load.",
    )
    heat_s: Live[Positive] = setting(60, "A temperature counts when it has been above its limit for so long.")
    temp_c: Live[Count] = setting(90, "The limit for the core in °C, for cards that tell none of their own.")
    memory_temp_c: Live[Count] = setting(95, "The limit for the memory in °C, for cards that tell none of their own.")
    memory_temp_over_c: Live[Natural] = setting(
        5, "A GPU goes into quarantine when its memory is so many °C above its limit."
    )
    slowdown_margin_c: Live[Natural] = setting(
        5,
        "The core is too hot when it comes so many °C near the temperature at which the card "
        "slows down, if the card tells only that one.",
    )
    limit_margin_c: Live[Natural] = setting(
        3, "obatchd warns when a GPU comes so many °C near its next slowdown (T.Limit)."
    )
    shutdown_margin_c: Live[Natural] = setting(
        3,
        "When a GPU comes so many °C near the temperature at which it turns itself off, obatchd "
        "takes its load away at once and puts it into quarantine.",
    )

    # PCIe, power
    link_polls: Live[Count] = setting(
        3,
        "obatchd reports a PCIe link that is too narrow or too slow in so many slow "
        "readings in a row (see slow_poll_s).",
    )
    pcie_width: Live[int] = setting(
        0, "How many PCIe lanes each GPU must have; 0: as many as the card can have.", ge=0, le=32
    )
    pcie_gen_fails: Live[bool] = setting(
        False, "A burn-in fails a GPU whose PCIe link runs at a lower generation under load."
    )
    link_load_percent: Live[int] = setting(
        50, "The PCIe link of a GPU must run at full speed from this utilisation on.", ge=0, le=100
    )
    replays: Live[Positive] = setting(
        1,
        "obatchd warns when a GPU has more than so many times the PCIe replays that the bit error "
        "rate of its link explains (a limit of DCGM).",
    )
    replays_run: Live[Positive] = setting(
        5,
        "A burn-in fails a GPU that has more than so many times the PCIe replays that the bit error rate of its link "
        "explains, for 10 minutes.",
    )
    power_polls: Live[Count] = setting(
        3, "obatchd warns when the power of a GPU could be read before and cannot be read in so many readings in a row."
    )


Percent = Annotated[float, Field(ge=0, le=100)]


class BurninSettings(Section):
    """How burn-ins run. The limits for errors and heat are in [gpu_health]."""

    model: Live[str] = setting(
        "",
        "The model that is the load of a burn-in; empty: the daemon's model. A dense model that "
        "fills most of a GPU is best.",
    )
    vram_target_percent: Live[Percent] = setting(
        85,
        "How much of the memory of a GPU the model and its context fill in a burn-in, if the model can have so long a "
        "context.",
    )
    canary_s: Live[Positive] = setting(
        600,
        "How often a burn-in checks the output of a GPU; in short runs more often, where checks take long less often.",
    )
    canary_runs: Live[int] = setting(
        20, "From so many answers a burn-in learns the right output of a GPU, before it checks it.", ge=3, le=1000
    )
    slower_warn_percent: Live[Percent] = setting(
        5,
        "A burn-in warns about a GPU that is so many percent slower than GPUs like it: in tokens, matrix products, "
        "bytes of memory, or bytes over a link per second.",
    )
    slower_fail_percent: Live[Percent] = setting(
        10, "A burn-in fails a GPU that is so many percent slower than GPUs like it, in any of these."
    )
    stress_power_percent: Live[Percent] = setting(
        75,
        "The stress of a GPU was low when its median power was below this share of its limit "
        "(DCGM: adequate from 75 %).",
    )
    stress_utilisation_percent: Live[Percent] = setting(
        90, "The stress of a GPU was low when its utilisation was lower than this."
    )
    stress_loaded_percent: Live[Percent] = setting(
        95, "The stress of a GPU was low when it was under load for less of the time than this."
    )
    least_loaded_percent: Live[Percent] = setting(
        80, "A burn-in judges no GPU that was under load for less of the time asked for than this."
    )
    least_seen_percent: Live[Percent] = setting(
        95, "A burn-in judges no GPU whose readings cover less of the run than this."
    )
    covered_percent: Live[Percent] = setting(
        95,
        "A burn-in passes a GPU only with low stress when less of the memory that was free was written and read back.",
    )
    memory_percent: Live[Percent] = setting(
        95, "How much of the memory that is free the load memory of a burn-in writes and reads back."
    )
    stress_memory_mib: Live[Count] = setting(
        4096,
        "A burn-in ends the process that loads a GPU with products and patterns when that takes more of the host's "
        "memory, in MiB.",
    )
    keep_runs: Live[Count] = setting(100, "obatchd keeps the journals of so many burn-ins, the newest ones.")
    keep_days: Live[Count] = setting(400, "obatchd deletes a burn-in so long after its end, with its report.")
