"""What a burn-in run is to do, and on which machine."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class Limits(msgspec.Struct, frozen=True):
    """The criteria of a run that are not those of GPU health, fixed when it starts. Their sources: docs/burnin.md."""

    slower_warn_percent: float = 5.0
    slower_fail_percent: float = 10.0
    stress_power_percent: float = 75.0
    stress_utilisation_percent: float = 90.0
    stress_loaded_percent: float = 95.0
    least_loaded_percent: float = 80.0
    least_seen_percent: float = 95.0
    vram_target_percent: float = 85.0
    covered_percent: float = 95.0


class Phase(msgspec.Struct, frozen=True):
    """Part of a run with the same loads on all its GPUs."""

    loads: list[str]  # model, compute, memory, dcgm, gpu-burn; jobs
    part: float  # of the duration


class Plan(msgspec.Struct, frozen=True):
    """The run that the operator asked for."""

    run: str
    profile: str  # quick, overnight, acceptance
    duration_s: float  # of load; a gap in which the daemon was down does not count
    gpus: list[str]  # UUIDs
    model: str
    context_length: int  # tokens the filling of VRAM begins with
    exclusive: bool
    with_jobs: bool
    fill_vram: bool
    canary_s: float  # between two output checks of one GPU; 0: none
    canary_runs: int  # of the calibration
    bucket_s: float  # of one line of samples
    strict: bool  # acceptance: too little stress is not enough for any PASS
    limits: Limits
    retest: list[str] = []  # UUIDs of GPUs that were in quarantine at the start; a PASS ends it
    phases: list[Phase] = []  # empty in plans of versions that knew no load but the model
    memory_percent: float = 95.0  # of what is free that the load "memory" takes
    left_out: dict[str, str] = {}  # loads of the profile that this host cannot have, and why
    over_hosts: bool | UnsetType = UNSET  # true: it is one host's part of a run over several

    @property
    def loads(self) -> list[str]:
        """All that it has, in order."""
        return list(dict.fromkeys(load for phase in self.phases for load in phase.loads))


class Host(msgspec.Struct, frozen=True):
    """The machine, as far as firmware and kernel tell; nothing about people."""

    hostname: str = "?"
    machine: str = ""
    dmi: dict[str, str] = {}  # by name; serial numbers only root may read
    kernel: str = ""
    system: str = ""
    driver_module: str = ""
    driver: str = ""
