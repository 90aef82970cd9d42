"""Effects of settings on what is found of a GPU: by the monitor, and by a burn-in."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
from health_support import CARD, FAST, SLOW, Watched
from settings_support import in_force, reload
from test_fault_matrix import BurnedIn, climb, rising

from obatchd.daemon.burnin import BurninHost
from obatchd.gpus.model import Gpu, Identity, Reading, SlowReading, XidEvent
from obatchd.gpus.monitor import Monitor
from obatchd.gpus.track import Track
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings

OTHER = "GPU-2"


class Limit(NamedTuple):
    """A limit before and after a reload, and what befalls a card that only the second one finds fault with.

    ``after`` is what is found then: of work that goes on, and of a burn-in; ``before`` the same, empty: nothing.
    """

    old: Any
    new: Any
    fault: Callable[[Watched], Any]
    signal: str
    after: tuple[str, str]
    before: tuple[str, ...] = ()
    card: Identity = CARD
    counters: dict[str, Any] = {}  # noqa: RUF012 - never changed; told from the first reading on
    beside: dict[str, Any] = {}  # noqa: RUF012 - never changed; other limits


class NoFacts(dict[str, str]):
    def starting_with(self, prefix: str) -> dict[str, str]:
        return {}

    def set(self, key: str, value: str) -> None: ...


class Monitored(Watched):
    """A card whose readings a monitor gets, beside another one without fault that does the same work."""

    def __init__(self, settings: Current[Settings], card: Identity, **counters: Any) -> None:
        gpus = [Gpu(uuid, "Test", place, "", 2**36, "580.1") for place, uuid in enumerate((card.uuid, OTHER))]
        probe: Any = SimpleNamespace(gpus=gpus)
        self.monitor = Monitor(probe, NoFacts(), settings, self)  # type: ignore[arg-type]
        self.monitor.identities([card, msgspec.structs.replace(CARD, uuid=OTHER)])
        super().__init__(card, **counters)

    def comparable(self, card: str) -> set[str]:
        return set(self.monitor.tracks)

    def tracks_elsewhere(self, card: str, named: object) -> list[Track]:
        return []

    def see(self, reading: Reading, slow: SlowReading | None) -> None:
        if slow is not None:
            self.monitor.slow_readings([slow, msgspec.structs.replace(SLOW, uuid=OTHER, at_s=reading.at_s)])
        self.monitor.readings([reading, msgspec.structs.replace(FAST, uuid=OTHER, at_s=reading.at_s)])

    def next_reading(self) -> None:
        self.see(msgspec.structs.replace(FAST, at_s=self.now_s, **self.fast), None)

    def hear(self, event: XidEvent) -> None:
        self.monitor.xids([msgspec.structs.replace(event, uuid=CARD.uuid)])

    def found(self, signal: str) -> tuple[str, ...]:
        findings = self.monitor.assessments[CARD.uuid].findings
        return next(((each.level, each.burn_in) for each in findings if each.signal == signal), ())


def see_limit(key: str, limit: Limit) -> None:
    """The next reading after a reload is judged by the new limit; a burn-in that begins then has it, too."""
    current = in_force(gpu_health={key.removeprefix("gpu_health."): limit.old} | limit.beside)
    earlier_run = BurnedIn(limit.card, limits_of_a_run(current), **limit.counters)
    watched = Monitored(current, limit.card, **limit.counters)
    limit.fault(watched)
    assert watched.found(limit.signal) == limit.before
    reload(current, key, limit.new)
    watched.next_reading()
    assert watched.found(limit.signal) == limit.after
    later_run = BurnedIn(limit.card, limits_of_a_run(current), **limit.counters)
    for run in (earlier_run, later_run):
        limit.fault(run)
    assert (consequence(earlier_run, limit.signal), consequence(later_run, limit.signal)) == (
        limit.before[1:] or ("ok",),
        limit.after[1:],
    )


def limits_of_a_run(current: Current[Settings]) -> Any:
    """Those that a burn-in asks its host for when it begins."""
    host: Any = SimpleNamespace(_settings=current)
    return BurninHost.settings(host).gpu_health


def consequence(run: BurnedIn, signal: str) -> tuple[str, ...]:
    reasons = {reason.signal: reason.consequence for reason in run.report()[0].reasons}
    return (reasons.get(signal, "ok"),)


def after(seconds: float, **changes: Any) -> Callable[[Watched], Any]:
    return lambda card: card.pass_time(seconds, **changes)


def known(**changes: Any) -> Identity:
    return msgspec.structs.replace(CARD, **changes)


def xids(*numbers: int) -> Callable[[Watched], Any]:
    return lambda card: card.xid(*numbers)


def growing(counter: str, per_slow: float, seconds: float) -> Callable[[Watched], Any]:
    return lambda card: climb(card, counter, per_slow, seconds)


MANY = 10**6
BRAKE = after(480, clock_reasons=0x88)
THROTTLED = after(30, clock_reasons=0x20)
NARROW = after(100, pcie_width=8)
BARE = known(temp_max_c=None, temp_slowdown_c=None, temp_shutdown_c=None, memory_temp_max_c=None)
LIMITS = {
    "lost_polls": Limit(100, 2, after(10, trouble="lost"), "lost", ("quarantine", "fail")),
    "xids": Limit({"31": "ignore"}, {"31": "warn"}, xids(31), "xid_31", ("warn", "warn")),
    "repeats": Limit(100, 3, xids(31, 13, 31), "xid_repeats", ("quarantine", "fail")),
    "repeat_s": Limit(1, 3600, xids(31, 13, 31), "xid_repeats", ("quarantine", "fail")),
    "memory_xids": Limit(100, 2, xids(94, 94), "xid_94", ("quarantine", "fail"), ("warn", "fail")),
    "ecc_uncorrected": Limit(9, 0, after(30, ecc_uncorrected=1), "ecc_uncorrected", ("quarantine", "fail")),
    "ecc_corrected_per_h": Limit(MANY, 100, after(30, ecc_corrected=101), "ecc_corrected", ("warn", "warn")),
    "ecc_corrected_rising": Limit(MANY, 10, rising, "ecc_corrected_rising", ("warn", "warn")),
    "ecc_corrected_per_s": Limit(
        MANY, 1000, growing("ecc_corrected", 40_000, 90), "ecc_corrected_rate", ("quarantine", "fail")
    ),
    "ecc_corrected_per_run": Limit(
        MANY, 10_000, after(60, ecc_corrected=99_000), "ecc_corrected_total", ("ok", "fail")
    ),
    "sram_uncorrected": Limit(
        99, 4, after(30), "sram_uncorrected", ("warn", "warn"), counters={"sram_uncorrected_aggregate": 5}
    ),
    "remapped_rows": Limit(MANY, 512, after(30, remapped_uncorrected=512), "remapped_rows", ("warn", "fail")),
    "retired_pages": Limit(
        MANY, 63, after(30, retired_double_bit=3, retired_single_bit=60), "retired_pages", ("warn", "fail")
    ),
    "slowdown_share": Limit(1, 0.6, BRAKE, "hw_slowdown", ("quarantine", "warn"), ("warn", "warn")),
    "slowdown_minutes": Limit(60, 10, BRAKE, "hw_slowdown", ("quarantine", "warn"), ("warn", "warn")),
    "slowdown_run_share": Limit(1, 0.01, after(30, clock_reasons=0x48), "hw_slowdown_time", ("ok", "fail")),
    "slowdown_run_s": Limit(
        MANY, 10, after(30, clock_reasons=0x48), "hw_slowdown_time", ("ok", "fail"), beside={"slowdown_run_share": 1}
    ),
    "thermal_share": Limit(1, 0.01, THROTTLED, "sw_thermal", ("warn", "warn"), beside={"thermal_run_share": 1}),
    "thermal_run_share": Limit(1, 0.1, THROTTLED, "sw_thermal", ("warn", "fail"), ("warn", "warn")),
    "heat_s": Limit(MANY, 60, after(70, temp_c=90), "temp", ("warn", "fail")),
    "temp_c": Limit(99, 85, after(70, temp_c=90), "temp", ("warn", "fail"), card=BARE),
    "memory_temp_c": Limit(99, 80, after(70, memory_temp_c=84), "memory_temp", ("warn", "fail"), card=BARE),
    "memory_temp_over_c": Limit(
        50, 5, after(70, memory_temp_c=101), "memory_temp", ("quarantine", "fail"), ("warn", "fail")
    ),
    "slowdown_margin_c": Limit(
        0, 5, after(70, temp_c=89), "temp", ("warn", "fail"), card=known(temp_max_c=None, temp_shutdown_c=None)
    ),
    "limit_margin_c": Limit(0, 3, after(4, margin_c=3), "temp_margin", ("warn", "warn")),
    "shutdown_margin_c": Limit(0, 3, after(4, temp_c=95), "near_shutdown", ("quarantine", "fail")),
    "link_polls": Limit(99, 3, NARROW, "pcie_width", ("warn", "fail")),
    "pcie_width": Limit(8, 16, NARROW, "pcie_width", ("warn", "fail")),
    "pcie_gen_fails": Limit(False, True, after(100, pcie_gen=3), "pcie_gen", ("warn", "fail"), ("warn", "warn")),
    "link_load_percent": Limit(100, 50, NARROW, "pcie_width", ("warn", "fail")),
    "replays": Limit(MANY, 1, growing("pcie_replays", 20, 120), "pcie_replays", ("warn", "warn")),
    "replays_run": Limit(MANY, 5, growing("pcie_replays", 60, 900), "pcie_replays", ("warn", "fail"), ("warn", "warn")),
    "power_polls": Limit(99, 3, after(10, power_w=None), "power_unreadable", ("warn", "warn")),
}
LIMITS = {f"gpu_health.{name}": limit for name, limit in LIMITS.items()}
