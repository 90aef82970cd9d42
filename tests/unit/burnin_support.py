"""Burn-in runs without servers or time: readings of made-up GPUs, straight into a recording."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from obatchd.burnin.journal.recorder import Occupied, Seen, Worked
from obatchd.burnin.journal.records import (
    Begun,
    Canary,
    Ended,
    LinkSpeed,
    Loading,
    PhaseBegun,
    Prepared,
    Record,
    StressEnded,
    StressOpened,
    Unit,
    WrongResult,
)
from obatchd.burnin.run import plan as plans
from obatchd.burnin.run.recording import Recording
from obatchd.documents.burnin.plan import Host, Plan
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
class Stressed:
    """The loads beside the model on one made-up GPU."""

    compute: float = 1.0  # times the speed of the others
    memory: float = 1.0
    link: float = 1.0  # to and from the host
    peers: Callable[[int, float], float] = lambda peer, bytes_per_s: bytes_per_s
    covered: float = 0.96  # of what is free
    first: str = "5f2c"  # digest of the first product
    wrong: Sequence[tuple[float, WrongResult]] = ()  # seconds since the load began, and what is told
    ended: tuple[float, str, str] | None = None  # seconds, code, text


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
    stressed: Stressed = field(default_factory=Stressed)


def uuid(number: int) -> str:
    return f"GPU-5150a7ed-0000-4000-8000-{number:012d}"


def make_plan(count: int, hours: float, load: Sequence[str] = (), **changes: Any) -> Plan:
    asked = plans.Asked(duration=f"{hours}h", load=list(load), with_jobs=changes.get("with_jobs", False))
    settings = Settings(model="llama3.3")
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
    noise, loads = random.Random(seed), list[str]()
    plan = plan or make_plan(len(cards), hours)
    identities = {uuid(i): identity(i, card) for i, card in enumerate(cards)}
    records = begin(plan, cards)
    recording = Recording(plan, identities, GpuHealthSettings(), START_S, judge_s=JUDGE_S)
    xids = sorted((at_s, i, number, line) for i, card in enumerate(cards) for at_s, number, line in card.xids)
    passed_s, phase = 0.0, -1
    while passed_s < hours * HOUR_S:
        if (number := plans.phase_at(plan.phases, passed_s / plan.duration_s)) != phase and plan.phases:
            phase = number
            loads = [] if plan.with_jobs else plan.phases[phase].loads
            records += _next_phase(recording, number, plan, START_S + passed_s, cards)
        passed_s += STEP_S
        now_s = START_S + passed_s
        while xids and xids[0][0] <= passed_s:
            at_s, i, number, line = xids.pop(0)
            recording.note(recording.watch.xid(uuid(i), XidEvent(number, START_S + at_s, uuid(i), line=line)))
        seen = {uuid(i): _seen(card, i, passed_s, now_s, noise) for i, card in enumerate(cards)}
        for i, card in enumerate(cards):
            records += _stress(recording, card, i, loads, passed_s, noise)
            if card.busy(passed_s) and (not loads or "model" in loads):
                busy_s = SLOTS * STEP_S * card.slots_busy * noise.uniform(0.985, 1.0)
                recording.recorder.loaded(uuid(i), Occupied(busy_s, STEP_S, 0.0))
                if card.answers:
                    beside = 0.4 if len(loads) > 1 else 1.0
                    tokens = int(400 * beside * card.speed * STEP_S * noise.uniform(0.9, 1.1))
                    recording.recorder.answered(uuid(i), tokens=tokens, prompt_tokens=4 * tokens, requests=6)
        records += recording.look(now_s, seen)
    records += recording.finish(START_S + passed_s)
    return [*records, *_canaries(cards, hours), Ended(START_S + passed_s, "completed")]


def _next_phase(recording: Recording, number: int, plan: Plan, now_s: float, cards: Sequence[Card]) -> list[Record]:
    """The loads are exchanged; before and after a phase without model links are measured."""
    loads = plan.phases[number].loads
    records: list[Record] = [bucket] if (bucket := recording.recorder.exchange(between=False)) else []
    if number == 0:
        precisions = ["FP32", "TF32", "FP16", "BF16"]
        records += [
            StressOpened(now_s, uuid(i), "cuBLAS", "12.8", card.name, precisions) for i, card in enumerate(cards)
        ]
    elif not plan.with_jobs:
        for i, card in enumerate(cards):
            for kind in ("to_host", "from_host"):
                records.append(LinkSpeed(now_s, uuid(i), kind, 55e9 * card.stressed.link * (1 + i % 3 / 100)))
            for peer in range(len(cards)):
                if peer != i:
                    records.append(LinkSpeed(now_s, uuid(i), "to_peer", card.stressed.peers(peer, 390e9), uuid(peer)))
    return [*records, PhaseBegun(now_s, number, loads)]


def _stress(
    recording: Recording, card: Card, number: int, loads: Sequence[str], passed_s: float, noise: random.Random
) -> list[Record]:
    """One step of the loads beside the model."""
    stressed, gpu, records = card.stressed, uuid(number), list[Record]()
    for at_s, wrong in stressed.wrong:
        if passed_s - STEP_S < at_s <= passed_s:
            records.append(msgspec.structs.replace(wrong, at_s=START_S + at_s, gpu=gpu))
            recording.recorder.worked(gpu, Worked(**{"wrong_tiles" if wrong.load == "compute" else "wrong_words": 1}))
    if stressed.ended is not None and passed_s >= stressed.ended[0]:
        if passed_s - STEP_S < stressed.ended[0]:
            records.append(StressEnded(START_S + passed_s, gpu, *stressed.ended[1:]))
        return records
    if not card.busy(passed_s):
        return records
    if "compute" in loads:
        precision = ["FP32", "TF32", "FP16", "BF16"][int(passed_s / STEP_S) % 4]
        speed = {"FP32": 50e12, "TF32": 400e12, "FP16": 700e12, "BF16": 700e12}[precision] * stressed.compute
        done = int(speed * STEP_S * noise.uniform(0.99, 1.01))
        recording.recorder.worked(gpu, Worked(precision, stressed.first, done, STEP_S))
    if "memory" in loads:
        free = (20 if "model" in loads else 79) * 2**30
        moved = int(1.3e12 * STEP_S * stressed.memory * noise.uniform(0.99, 1.01))
        recording.recorder.worked(gpu, Worked(
            bytes_written=moved, bytes_checked=moved, accessing_s=STEP_S, covered_bytes=int(stressed.covered * free),
            free_bytes=free, passes=int(passed_s / STEP_S),
        ))  # fmt: skip
    if {"compute", "memory"} & set(loads):
        recording.recorder.stressed(gpu, STEP_S)
    return records


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
