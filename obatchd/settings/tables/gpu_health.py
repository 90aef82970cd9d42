"""The table ``[gpu_health]``: limits of :mod:`obatchd.gpus.rules`, each with where its default comes from."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from obatchd.settings.base import Live, PositiveSeconds, Section

XidClass = Literal["fatal", "reset", "memory", "application", "warn", "ignore"]
Share = Annotated[float, Field(ge=0, le=1)]


class GpuHealthSettings(Section):
    """When a GPU is warned about, taken out of use (quarantine), or fails a burn-in. See also docs/gpu-health.md."""

    lost_polls: Live[int] = Field(2, ge=1, description="Readings in a row that say the GPU is gone: quarantine.")

    # XIDs
    xids: Live[dict[str, XidClass]] = Field(
        {},
        description='Another class for single XIDs, e.g. {"63" = "memory", "109" = "application"}. "fatal", "reset": '
        'quarantine; "memory": quarantine with the second in a day; "application": with repeats on this GPU alone; '
        '"warn"; "ignore".',
    )
    repeats: Live[int] = Field(
        3, ge=1, description="XIDs of an application, or crashes of its server, on this GPU alone in repeat_s."
    )
    repeat_s: Live[PositiveSeconds] = Field(3600, description="Window of repeats.")
    memory_xids: Live[int] = Field(2, ge=1, description="XIDs of class memory in 24 h: quarantine.")

    # Memory
    ecc_uncorrected: Live[int] = Field(0, ge=0, description="More new uncorrectable ECC errors than this: quarantine.")
    ecc_corrected_per_h: Live[int] = Field(100, ge=0, description="More corrected ECC errors in an hour: a warning.")
    ecc_corrected_rising: Live[int] = Field(
        10,
        ge=1,
        description="So many in 20 minutes, and twice as many from one 20 minutes to the next, twice over: a warning.",
    )
    ecc_corrected_per_s: Live[int] = Field(
        1000, ge=1, description="More per second in two readings in a row: quarantine."
    )
    ecc_corrected_per_run: Live[int] = Field(10_000, ge=0, description="More in one burn-in: it fails.")
    sram_uncorrected: Live[int] = Field(
        4, ge=0, description="More uncorrectable SRAM errors in the life of the card: a warning, often reason for RMA."
    )
    remapped_rows: Live[int] = Field(512, ge=1, description="Rows remapped for uncorrectable errors: a warning (DCGM).")
    retired_pages: Live[int] = Field(63, ge=1, description="Retired pages of a card before Ampere: a warning (DCGM).")

    # Slowdowns and heat
    slowdown_share: Live[Share] = Field(
        0.6, description="Share of the last slowdown_minutes with a hardware slowdown: quarantine (gpud)."
    )
    slowdown_minutes: Live[int] = Field(10, ge=1, le=60, description="Window of slowdown_share.")
    slowdown_run_share: Live[Share] = Field(0.01, description="Share of the loaded time of a burn-in: it fails.")
    slowdown_run_s: Live[float] = Field(60, ge=0, description="Seconds of hardware slowdown in a burn-in: it fails.")
    thermal_share: Live[Share] = Field(0.01, description="Share of loaded time slowed by software for heat: a warning.")
    thermal_run_share: Live[Share] = Field(0.10, description="The same in a burn-in: it fails.")
    heat_s: Live[PositiveSeconds] = Field(60, description="How long a temperature must stay above a limit to count.")
    temp_c: Live[int] = Field(90, ge=1, description="Limit of the core where the card tells none of its own.")
    memory_temp_c: Live[int] = Field(95, ge=1, description="Limit of the memory where the card tells none of its own.")
    memory_temp_over_c: Live[int] = Field(5, ge=0, description="So far above the memory's limit: quarantine.")
    slowdown_margin_c: Live[int] = Field(
        5, ge=0, description="So far below its slowdown temperature the core is too hot, if the card tells only that."
    )
    limit_margin_c: Live[int] = Field(3, ge=0, description="Distance to the next slowdown (T.Limit): a warning.")
    shutdown_margin_c: Live[int] = Field(
        3, ge=0, description="So near its shutdown temperature the load is taken away at once, and quarantine."
    )

    # PCIe, power
    link_polls: Live[int] = Field(3, ge=1, description="Slow readings in a row with too narrow or slow a PCIe link.")
    pcie_width: Live[int] = Field(0, ge=0, le=32, description="Expected PCIe lanes; 0: as many as the card can.")
    pcie_gen_fails: Live[bool] = Field(False, description="A lower PCIe generation under load fails a burn-in.")
    link_load_percent: Live[int] = Field(
        50, ge=0, le=100, description="Utilisation from which the link must be up to speed."
    )
    replays: Live[PositiveSeconds] = Field(
        1, description="PCIe replays, as a multiple of what the link's bit error rate explains (DCGM): a warning."
    )
    replays_run: Live[PositiveSeconds] = Field(5, description="The same for 10 minutes of a burn-in: it fails.")
    power_polls: Live[int] = Field(
        3, ge=1, description="Readings in a row without power, that was readable: a warning."
    )

    @field_validator("xids")
    @classmethod
    def _numbers(cls, value: dict[str, XidClass]) -> dict[str, XidClass]:
        for number in value:
            if not re.fullmatch(r"[1-9]\d{0,3}", number):
                raise ValueError(f'"{number}" is no XID: the names are numbers, e.g. {{"63" = "warn"}}')
        return value
