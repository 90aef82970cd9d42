"""Stand-in GPUs whose utilisation, temperature and power follow their load (:mod:`obatchd.simulator.cards.load`)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from obatchd.errors import GpuError
from obatchd.gpus.model import ClockReason, Gpu, GpuProcess, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.source import GpuSource
from obatchd.simulator import config
from obatchd.simulator.cards.load import Total, is_alive, total
from obatchd.simulator.timeline import EventKind, GpuEvent, Timeline, pace

MEMORY_BYTES = 80 * 1024**3
DRIVER = "000.00-simulated"  # the part behind the dash keeps these cards apart from real ones
POWER_LIMIT_W = 350.0

_IDLE_TEMP_C, _BUSY_TEMP_C = 35, 75
_IDLE_POWER_W, _BUSY_POWER_W = 60.0, 300.0
_CLOCK_MHZ, _MEMORY_CLOCK_MHZ = 1980, 2619
_MEMORY_WARMER_C = 8
_SLOWDOWN_C = 92
_HANG_LOOK_S = 0.1
_MISMATCH = "The NVIDIA driver was updated under the running kernel module: reboot the host."
MACHINE = "OBATCHD_SIMULATOR_MACHINE"  # in the environment: a number up to 9999
KERNEL_LOG = "kernel.log"  # in the directory of the stand-ins, in the records of /dev/kmsg
_FULL_PERCENT = 98  # with all slots busy; a real GPU seldom shows 100


def _machine() -> int:
    """The number of this machine, where several seem to be on one: their GPUs are different ones."""
    return int(os.environ.get(MACHINE, "0"))


def simulated_uuid(index: int) -> str:
    """The UUID of stand-in GPU ``index`` of this machine."""
    return f"GPU-5150a7ed-{_machine():04d}-4000-8000-{index:012d}"


def simulated_gpus(count: int) -> list[Gpu]:
    """The first ``count`` stand-in GPUs, in index order."""
    return [
        Gpu(
            uuid=simulated_uuid(index),
            name="Simulated GPU 80GB",
            index=index,
            pci_bus_id=f"00000000:{index + 1:02X}:00.0",
            memory_bytes=MEMORY_BYTES,
            driver=DRIVER,
        )
        for index in range(count)
    ]


def kernel_log(directory: Path) -> Path:
    """The file that stands for the kernel log, made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / KERNEL_LOG
    path.touch()
    return path


class SimulatedGpus(GpuSource):
    """The stand-in of :class:`obatchd.gpus.nvml.driver.Nvml`.

    Args:
        directory: where the servers write their load (``OBATCHD_SIMULATOR_GPU_DIR``), and where the timeline is.
        count: how many GPUs there are.
    """

    def __init__(self, directory: Path, count: int) -> None:
        self._directory = directory
        self._gpus = simulated_gpus(count)
        self._listed = list(self._gpus)
        self._timeline = Timeline(directory, config.load(os.environ).gpus)
        if self._timeline.active(0, "no_driver"):
            raise GpuError("No NVIDIA driver on this host.", code="no_driver")
        if self._timeline.active(0, "mismatch"):
            raise GpuError(_MISMATCH, code="driver_mismatch")

    def gpus(self) -> list[Gpu]:
        self._hang()
        self._listed = [gpu for gpu in self._gpus if not self._timeline.active(gpu.index, "lost")]
        return list(self._listed)

    def readings(self) -> list[Reading]:
        self._hang()
        return [self._reading(gpu) for gpu in self._listed]

    def identities(self) -> list[Identity]:
        return [self._identity(gpu) for gpu in self._listed if not self._timeline.active(gpu.index, "lost")]

    def slow_readings(self) -> list[SlowReading]:
        return [self._slow_reading(gpu) for gpu in self._listed]

    def xids(self) -> list[XidEvent]:
        """Half of them come through NVML, all through the kernel log, as it is in life."""
        found = []
        for gpu in self._gpus:
            for event in self._timeline.due_xids(gpu.index):
                self._to_kernel_log(gpu, event)
                if event.xid % 2:
                    found.append(XidEvent(event.xid, time.time(), gpu.uuid, source="nvml"))
        return found

    def host_trouble(self) -> tuple[str, str]:
        return ("driver_mismatch", _MISMATCH) if self._timeline.active(0, "mismatch") else ("", "")

    def _hang(self) -> None:
        while any(self._timeline.active(gpu.index, "hang") for gpu in self._gpus):
            time.sleep(_HANG_LOOK_S)

    def _to_kernel_log(self, gpu: Gpu, event: GpuEvent) -> None:
        address = gpu.pci_bus_id[4:].lower().partition(".")[0]
        text = event.line or "pid=4242, name=runner, a stand-in's error"
        record = f"4,1,{time.monotonic() * 1e6:.0f},-;NVRM: Xid (PCI:{address}): {event.xid}, {text}\n"
        with open(self._directory / KERNEL_LOG, "a", encoding="utf-8") as file:
            file.write(record)

    def _reading(self, gpu: Gpu) -> Reading:
        if self._timeline.active(gpu.index, "lost"):
            return Reading(gpu.uuid, time.time(), errors={"handle": "GPU is lost"}, trouble="lost")
        load = self._total(gpu)
        foreign = self._timeline.active(gpu.index, "foreign")
        processes = [GpuProcess(*held) for held in load.held]
        processes += [GpuProcess(event.pid, event.memory_bytes) for event in foreign if is_alive(event.pid)]
        slowed = sum({event.reasons for event in self._timeline.active(gpu.index, "throttle")})
        capped = load.power > 0.99 * self._most_power(gpu)
        reading = Reading(
            uuid=gpu.uuid,
            at_s=time.time(),
            utilisation_percent=round(_FULL_PERCENT * load.utilisation),
            memory_utilisation_percent=round(_FULL_PERCENT / 2 * load.utilisation),
            memory_used_bytes=sum(process.memory_bytes or 0 for process in processes),
            memory_total_bytes=gpu.memory_bytes,
            temp_c=self._temp_c(gpu, load.temp),
            memory_temp_c=self._temp_c(gpu, load.temp) + _MEMORY_WARMER_C,
            power_w=round(self._power_w(gpu, load.power), 1),
            energy_j=self._energy_j(gpu, load.powered_s),
            power_limit_w=POWER_LIMIT_W,
            clock_mhz=round(_CLOCK_MHZ * pace(self._timeline, gpu.index) / (2 if slowed else 1)),
            memory_clock_mhz=_MEMORY_CLOCK_MHZ,
            clock_reasons=slowed | (ClockReason.POWER_CAP if capped else 0),
            performance_state=0,
            margin_c=max(1, _SLOWDOWN_C - self._temp_c(gpu, load.temp)),
            processes=processes,
        )
        return self._changed(gpu, reading)

    def _total(self, gpu: Gpu) -> Total:
        """Its load; with no more power than it may take."""
        load, most = total(self._directory, gpu.uuid), self._most_power(gpu)
        return load._replace(power=min(load.power, most), temp=min(load.temp, most))

    def _most_power(self, gpu: Gpu) -> float:
        caps_w = [event.watts for event in self._timeline.active(gpu.index, "power_cap")]
        return (min([POWER_LIMIT_W, *caps_w]) - _IDLE_POWER_W) / (_BUSY_POWER_W - _IDLE_POWER_W)

    def _power_w(self, gpu: Gpu, share: float) -> float:
        wasted_w = sum(event.watts for event in self._timeline.active(gpu.index, "waste"))
        return _IDLE_POWER_W + (_BUSY_POWER_W - _IDLE_POWER_W) * share + wasted_w

    def _energy_j(self, gpu: Gpu, powered_s: float) -> float:
        """The integral of the power since the machine was booted."""
        now_s, wastes = self._timeline.now_s, (e for e in self._timeline.events(gpu.index) if e.kind == "waste")
        wasted_j = sum(event.watts * event.lasted_s(now_s) for event in wastes)
        work_j = (_BUSY_POWER_W - _IDLE_POWER_W) * powered_s
        return round(_IDLE_POWER_W * time.monotonic() + work_j + wasted_j, 3)

    def _temp_c(self, gpu: Gpu, share: float) -> int:
        temp_c = _IDLE_TEMP_C + (_BUSY_TEMP_C - _IDLE_TEMP_C) * share
        for event in self._timeline.active(gpu.index, "heat"):
            part = min(1.0, event.lasted_s(self._timeline.now_s) / event.ramp_s) if event.ramp_s else 1.0
            temp_c += (event.temp_c - temp_c) * part
        return round(temp_c)

    def _slow_reading(self, gpu: Gpu) -> SlowReading:
        if self._timeline.active(gpu.index, "lost"):
            return SlowReading(gpu.uuid, time.time(), errors={"handle": "GPU is lost"}, trouble="lost")
        reading = msgspec.structs.replace(_CLEAN, uuid=gpu.uuid, at_s=time.time())
        counters: dict[str, float] = {}
        for event in self._timeline.events(gpu.index):
            lasted_s = event.lasted_s(self._timeline.now_s)
            rates = event.per_s if event.kind == "grow" else {}
            if event.kind == "throttle":
                rates = {"hw_power_brake_s" if event.reasons & ClockReason.HW_POWER_BRAKE else "hw_thermal_s": 1.0}
            for name, per_s in rates.items():
                counters[name] = counters.get(name, 0.0) + per_s * lasted_s
        whole = {name: value if name.endswith(("_s", "_j")) else int(value) for name, value in counters.items()}
        told = {"energy_j": self._energy_j(gpu, self._total(gpu).powered_s)} | whole
        return self._changed(gpu, msgspec.structs.replace(reading, **told))

    def _identity(self, gpu: Gpu) -> Identity:
        card = Identity(
            uuid=gpu.uuid, name=gpu.name, index=gpu.index, pci_bus_id=gpu.pci_bus_id, slot=str(gpu.index + 1),
            serial=f"SIM{_machine():04d}{gpu.index:06d}", board_part_number="900-SIM", vbios="00.00.00",
            inforom="SIM.1", driver=DRIVER, cuda="13.0", memory_bytes=gpu.memory_bytes, ecc=True, ecc_pending=True,
            mig=False, persistence=True, power_default_w=POWER_LIMIT_W, temp_max_c=87, temp_slowdown_c=_SLOWDOWN_C,
            temp_shutdown_c=97, memory_temp_max_c=95, clock_max_mhz=_CLOCK_MHZ, pcie_gen_max=4, pcie_width_max=16,
        )  # fmt: skip
        return self._changed(gpu, card)

    def _changed(self, gpu: Gpu, reading: _T) -> _T:
        """A reading with the changes of the timeline."""
        names = set(reading.__struct_fields__)
        changes: dict[str, object] = {}
        kinds: tuple[EventKind, ...] = ("no_data_centre", "old_driver")
        for kind in kinds:
            if self._timeline.active(gpu.index, kind):
                changes |= dict.fromkeys(names & _ABSENT[kind])
        for event in self._timeline.active(gpu.index, "set"):
            changes |= {name: value for name, value in event.values.items() if name in names}
        return msgspec.structs.replace(reading, **changes) if changes else reading


_T = TypeVar("_T", Reading, SlowReading, Identity)
_CLEAN = SlowReading(
    "", 0.0, ecc_corrected=0, ecc_uncorrected=0, ecc_corrected_aggregate=0, ecc_uncorrected_aggregate=0,
    sram_uncorrected=0, sram_uncorrected_aggregate=0, sram_threshold_exceeded=False, remapped_corrected=0,
    remapped_uncorrected=0, remap_pending=False, remap_failed=False, banks_without_spares=0, hw_thermal_s=0.0,
    hw_power_brake_s=0.0, sw_thermal_s=0.0, sw_power_cap_s=0.0, pcie_gen=4, pcie_width=16, pcie_replays=0,
    pcie_correctable=0, pcie_non_fatal=0, pcie_fatal=0, recovery_action=0, inforom_valid=True,
)  # fmt: skip
_GROWING = {"hw_thermal_s", "hw_power_brake_s", "sw_thermal_s", "sw_power_cap_s"}
_ABSENT = {
    "no_data_centre": {
        name for name in SlowReading.__struct_fields__ if name.startswith(("ecc", "sram", "remap", "bank"))
    }
    | _GROWING
    | {"memory_temp_c", "ecc", "ecc_pending", "recovery_action", "pcie_fatal", "pcie_non_fatal", "pcie_correctable"},
    "old_driver": {"margin_c", "recovery_action", "sram_threshold_exceeded"} | _GROWING,
}
