"""Burn-in runs without servers or time: readings of made-up GPUs, straight into a recording."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from obatchd.burnin.journal.recorder import Occupied, Seen
from obatchd.burnin.journal.records import Begun, Canary, Ended, Loading, Prepared, Record, Unit
from obatchd.burnin.run import plan as plans
from obatchd.burnin.run.recording import Recording
from obatchd.documents.burnin import Host, Plan
from obatchd.gpus.model import ClockReason, Identity, Reading, SlowReading, XidEvent
from obatchd.settings.settings import Settings
from obatchd.settings.tables.gpu_health import GpuHealthSettings

START_S = 1_790_000_000.0
STEP_S = 8.0
SLOW_S = 32.0
JUDGE_S = 40.0
SLOTS = 8
HOUR_S = 3600.0


@dataclass
class Card:
    """One made-up GPU; the callables may change it as time passes (seconds since the load began)."""

    speed: float = 1.0
    warmth_c: float = 0.0
    reading: Callable[[float, dict[str, Any]], None] = lambda at_s, fields: None
    slow: Callable[[float, dict[str, Any]], None] = lambda at_s, fields: None
    xids: Sequence[tuple[float, int, str]] = ()
    busy: Callable[[float], bool] = lambda at_s: True
    blind: Callable[[float], bool] = lambda at_s: False
    answers: bool = True
    slots_busy: float = 1.0
    hunger: float = 1.0  # times the power of the others for the same work
    name: str = "NVIDIA H100 80GB HBM3"
    counters: dict[str, float] = field(default_factory=dict)


def uuid(number: int) -> str:
    return f"GPU-5150a7ed-0000-4000-8000-{number:012d}"


def make_plan(count: int, hours: float, **changes: Any) -> Plan:
    asked, settings = plans.Asked(duration=f"{hours}h"), Settings(model="llama3.3")
    plan = plans.make("20261124-180000", asked, [uuid(i) for i in range(count)], settings)
    return msgspec.structs.replace(plan, **changes)


def identity(number: int, card: Card) -> Identity:
    return Identity(
        uuid=uuid(number), name=card.name, index=number, pci_bus_id=f"00000000:{number + 0x19:02X}:00.0",
        serial=f"16512230{number:05d}", vbios="96.00.74.00.01", driver="570.124.06", cuda="12.8", ecc=True,
        ecc_pending=True, persistence=True, power_default_w=700.0, temp_max_c=87, temp_slowdown_c=87,
        temp_shutdown_c=92, memory_temp_max_c=95, pcie_gen_max=5, pcie_width_max=16, memory_bytes=80 * 2**30,
    )  # fmt: skip


def begin(plan: Plan, cards: Sequence[Card]) -> list[Record]:
    """The records before the load."""
    units = [Unit(uuid(i), card.name, i, f"gpu{i}", identity(i, card)) for i, card in enumerate(cards)]
    host = Host("node07", "Supermicro SYS-821GE-TNHR", kernel="6.8.0", driver="570.124.06")
    ready = [
        Prepared(START_S - 5, f"gpu{i}", plan.model, 65536, SLOTS, 88.0, "sha256:a6eb4748fd29", "0.24.0")
        for i in range(len(cards))
    ]
    return [Begun(START_S - 60, plan, units, host, "0.1.0"), *ready, Loading(START_S)]


def simulate(cards: Sequence[Card], hours: float, *, seed: int = 1, plan: Plan | None = None) -> list[Record]:
    """The records of a whole run of ``hours`` with readings every 8 s and noise as real cards have it."""
    noise = random.Random(seed)
    plan = plan or make_plan(len(cards), hours)
    identities = {uuid(i): identity(i, card) for i, card in enumerate(cards)}
    records = begin(plan, cards)
    recording = Recording(plan, identities, GpuHealthSettings(), START_S, judge_s=JUDGE_S)
    xids = sorted((at_s, i, number, line) for i, card in enumerate(cards) for at_s, number, line in card.xids)
    passed_s = 0.0
    while passed_s < hours * HOUR_S:
        passed_s += STEP_S
        now_s = START_S + passed_s
        while xids and xids[0][0] <= passed_s:
            at_s, i, number, line = xids.pop(0)
            recording.note(recording.watch.xid(uuid(i), XidEvent(number, START_S + at_s, uuid(i), line=line)))
        seen = {uuid(i): _seen(card, i, passed_s, now_s, noise) for i, card in enumerate(cards)}
        for i, card in enumerate(cards):
            if card.busy(passed_s):
                busy_s = SLOTS * STEP_S * card.slots_busy * noise.uniform(0.985, 1.0)
                recording.recorder.loaded(uuid(i), Occupied(busy_s, STEP_S, 0.0))
                if card.answers:
                    tokens = int(400 * card.speed * STEP_S * noise.uniform(0.9, 1.1))
                    recording.recorder.answered(uuid(i), tokens=tokens, prompt_tokens=4 * tokens, requests=6)
        records += recording.look(now_s, seen)
    records += recording.finish(START_S + passed_s)
    return [*records, *_canaries(cards, hours), Ended(START_S + passed_s, "completed")]


def _seen(card: Card, number: int, passed_s: float, now_s: float, noise: random.Random) -> Seen:
    busy = card.busy(passed_s)
    warm = min(1.0, passed_s / 600)
    fields: dict[str, Any] = {
        "utilisation_percent": min(100, round(noise.gauss(97, 1.5))) if busy else 0,
        "memory_used_bytes": 70 * 2**30,
        "memory_total_bytes": 80 * 2**30,
        "temp_c": round(38 + 30 * warm + card.warmth_c * warm + noise.gauss(0, 1.2)),
        "memory_temp_c": round(45 + 33 * warm + noise.gauss(0, 1.2)),
        "power_w": max(90.0, noise.gauss(610, 25)) if busy else 95.0,
        "power_limit_w": 700.0,
        "clock_mhz": round(noise.gauss(1700, 30)),
        "clock_reasons": ClockReason.POWER_CAP if noise.random() < 0.3 else 0,
    }
    fields["power_w"] *= card.hunger
    card.counters["energy_j"] = card.counters.get("energy_j", 0.0) + fields["power_w"] * STEP_S
    fields["energy_j"] = card.counters["energy_j"]
    card.reading(passed_s, fields)
    slow = None
    if passed_s % SLOW_S == 0:
        counters: dict[str, Any] = {
            "ecc_corrected": 0, "ecc_uncorrected": 0, "ecc_corrected_aggregate": 12, "ecc_uncorrected_aggregate": 0,
            "remapped_uncorrected": 0, "remap_pending": False, "remap_failed": False, "pcie_replays": 0,
            "pcie_gen": 5, "pcie_width": 16, "hw_thermal_s": 0.0, "hw_power_brake_s": 0.0, "sw_thermal_s": 0.0,
            "recovery_action": 0,
        }  # fmt: skip
        card.counters["pcie_replays"] = card.counters.get("pcie_replays", 0) + (noise.random() < 0.01)
        counters["pcie_replays"] = card.counters["pcie_replays"]
        card.slow(passed_s, counters)
        slow = SlowReading(uuid(number), now_s, **counters)
    if card.blind(passed_s):
        return Seen(None, None, SLOTS)
    return Seen(Reading(uuid(number), now_s, **fields), slow, SLOTS)


def _canaries(cards: Sequence[Card], hours: float) -> list[Record]:
    text = "20 of 20 answers agree, log probabilities within 0.0001"
    records: list[Record] = []
    for i in range(len(cards)):
        records.append(Canary(START_S, uuid(i), "calibrated", text, "5f2c"))
        checks = int(hours * 6)
        records += [Canary(START_S + 600 * (n + 1), uuid(i), "match", digest="5f2c") for n in range(checks)]
    return records
