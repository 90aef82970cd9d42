"""The table ``[burnin]``: how burn-in runs load GPUs and when they pass. Sources: docs/burnin.md."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from obatchd.settings.base import Live, PositiveSeconds, Section

Percent = Annotated[float, Field(ge=0, le=100)]


class BurninSettings(Section):
    """Burn-in runs; what makes a GPU fail besides is in [gpu_health]."""

    model: Live[str] = Field(
        "", description="Model of the load; empty: the daemon's model. A dense one that fills most of a GPU is best."
    )
    vram_target_percent: Live[Percent] = Field(
        85, description="How much of a GPU's memory the context is to fill, if the model can have so much of it."
    )
    canary_s: Live[PositiveSeconds] = Field(
        600,
        description="Seconds between two output checks of a GPU; less in short runs, more where checks take long.",
    )
    canary_runs: Live[int] = Field(20, ge=3, le=1000, description="Answers that the output check is calibrated with.")
    slower_warn_percent: Live[Percent] = Field(5, description="Tokens/s so far below GPUs like it: a warning.")
    slower_fail_percent: Live[Percent] = Field(10, description="The same: it fails.")
    stress_power_percent: Live[Percent] = Field(
        75, description="Median power below this share of the limit is low stress (DCGM: adequate from 75 %)."
    )
    stress_utilisation_percent: Live[Percent] = Field(90, description="Utilisation below this is low stress.")
    stress_loaded_percent: Live[Percent] = Field(95, description="Loaded for less of the time than this is low stress.")
    least_loaded_percent: Live[Percent] = Field(80, description="Loaded for less of the time asked for: inconclusive.")
    least_seen_percent: Live[Percent] = Field(95, description="Readings for less of the run: inconclusive.")
    keep_runs: Live[int] = Field(100, ge=1, description="How many journals of runs are kept: the newest.")
    keep_days: Live[int] = Field(400, ge=1, description="A run that ended so long ago is deleted, with its report.")
