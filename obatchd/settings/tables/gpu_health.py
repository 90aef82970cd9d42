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

    lost_polls: Live[Count] = setting(2, "Readings in a row that say the GPU is gone: quarantine.")

    # XIDs
    xids: Live[Annotated[dict[str, XidClass], AfterValidator(_numbers)]] = setting(
        {},
        'Another class for single XIDs, e.g. {"63" = "memory", "109" = "application"}. "fatal", "reset": '
        'quarantine; "memory": quarantine with the second in a day; "application": with repeats on this GPU alone; '
        '"warn"; "ignore".',
    )
    repeats: Live[Count] = setting(
        3, "XIDs of an application, or crashes of its server, on this GPU alone in repeat_s."
    )
    repeat_s: Live[Positive] = setting(3600, "Window of repeats.")
    memory_xids: Live[Count] = setting(2, "XIDs of class memory in 24 h: quarantine.")

    # Memory
    ecc_uncorrected: Live[Natural] = setting(0, "More new uncorrectable ECC errors than this: quarantine.")
    ecc_corrected_per_h: Live[Natural] = setting(100, "More corrected ECC errors in an hour: a warning.")
    ecc_corrected_rising: Live[Count] = setting(
        10, "So many in 20 minutes, and twice as many from one 20 minutes to the next, twice over: a warning."
    )
    ecc_corrected_per_s: Live[Count] = setting(1000, "More per second in two readings in a row: quarantine.")
    ecc_corrected_per_run: Live[Natural] = setting(10_000, "More in one burn-in: it fails.")
    sram_uncorrected: Live[Natural] = setting(
        4, "More uncorrectable SRAM errors in the life of the card: a warning, often reason for RMA."
    )
    remapped_rows: Live[Count] = setting(512, "Rows remapped for uncorrectable errors: a warning (DCGM).")
    retired_pages: Live[Count] = setting(63, "Retired pages of a card before Ampere: a warning (DCGM).")

    # Slowdowns and heat
    slowdown_share: Live[Share] = setting(
        0.6, "Share of the last slowdown_minutes with a hardware slowdown: quarantine (gpud)."
    )
    slowdown_minutes: Live[int] = setting(10, "Window of slowdown_share.", ge=1, le=60)
    slowdown_run_share: Live[Share] = setting(0.01, "Share of the loaded time of a burn-in: it fails.")
    slowdown_run_s: Live[NotNegative] = setting(60, "Seconds of hardware slowdown in a burn-in: it fails.")
    thermal_share: Live[Share] = setting(0.01, "Share of loaded time slowed by software for heat: a warning.")
    thermal_run_share: Live[Share] = setting(0.10, "The same in a burn-in: it fails.")
    heat_s: Live[Positive] = setting(60, "How long a temperature must stay above a limit to count.")
    temp_c: Live[Count] = setting(90, "Limit of the core where the card tells none of its own.")
    memory_temp_c: Live[Count] = setting(95, "Limit of the memory where the card tells none of its own.")
    memory_temp_over_c: Live[Natural] = setting(5, "So far above the memory's limit: quarantine.")
    slowdown_margin_c: Live[Natural] = setting(
        5, "So far below its slowdown temperature the core is too hot, if the card tells only that."
    )
    limit_margin_c: Live[Natural] = setting(3, "Distance to the next slowdown (T.Limit): a warning.")
    shutdown_margin_c: Live[Natural] = setting(
        3, "So near its shutdown temperature the load is taken away at once, and quarantine."
    )

    # PCIe, power
    link_polls: Live[Count] = setting(3, "Slow readings in a row with too narrow or slow a PCIe link.")
    pcie_width: Live[int] = setting(0, "Expected PCIe lanes; 0: as many as the card can.", ge=0, le=32)
    pcie_gen_fails: Live[bool] = setting(False, "A lower PCIe generation under load fails a burn-in.")
    link_load_percent: Live[int] = setting(50, "Utilisation from which the link must be up to speed.", ge=0, le=100)
    replays: Live[Positive] = setting(
        1, "PCIe replays, as a multiple of what the link's bit error rate explains (DCGM): a warning."
    )
    replays_run: Live[Positive] = setting(5, "The same for 10 minutes of a burn-in: it fails.")
    power_polls: Live[Count] = setting(3, "Readings in a row without power, that was readable: a warning.")


Percent = Annotated[float, Field(ge=0, le=100)]


class BurninSettings(Section):
    """Burn-in runs; what makes a GPU fail besides is in [gpu_health]."""

    model: Live[str] = setting(
        "", "Model of the load; empty: the daemon's model. A dense one that fills most of a GPU is best."
    )
    vram_target_percent: Live[Percent] = setting(
        85, "How much of a GPU's memory the context is to fill, if the model can have so much of it."
    )
    canary_s: Live[Positive] = setting(
        600, "Seconds between two output checks of a GPU; less in short runs, more where checks take long."
    )
    canary_runs: Live[int] = setting(20, "Answers that the output check is calibrated with.", ge=3, le=1000)
    slower_warn_percent: Live[Percent] = setting(5, "Tokens/s so far below GPUs like it: a warning.")
    slower_fail_percent: Live[Percent] = setting(10, "The same: it fails.")
    stress_power_percent: Live[Percent] = setting(
        75, "Median power below this share of the limit is low stress (DCGM: adequate from 75 %)."
    )
    stress_utilisation_percent: Live[Percent] = setting(90, "Utilisation below this is low stress.")
    stress_loaded_percent: Live[Percent] = setting(95, "Loaded for less of the time than this is low stress.")
    least_loaded_percent: Live[Percent] = setting(80, "Loaded for less of the time asked for: inconclusive.")
    least_seen_percent: Live[Percent] = setting(95, "Readings for less of the run: inconclusive.")
    keep_runs: Live[Count] = setting(100, "How many journals of runs are kept: the newest.")
    keep_days: Live[Count] = setting(400, "A run that ended so long ago is deleted, with its report.")
