"""Every rule of the watchdog, over made-up observations and answers: what it finds, and what it leaves alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from settings_support import in_force

from obatchd.dispatch.watchdog import Observation, ServerWatch, Symptom, TimedAnswer
from obatchd.jobs.model import Profile

STALL_S = 300.0
SLOTS = 4
TINY = Profile("tiny", 8192)


@dataclass
class Server:
    """A server that is looked at every second."""

    limits: dict[str, float] = field(default_factory=dict)
    now_s: float = 1000.0
    token_s: float = 0.0

    def __post_init__(self) -> None:
        self.settings = in_force(watchdog=self.limits, dispatch={"stall_s": STALL_S})
        self.watch = ServerWatch(self.settings)
        self.look(1, active=0)

    def look(
        self, seconds: int, *, active: int = SLOTS, gpu: int | None = None, computes: bool = True, tokens: bool = False
    ) -> dict[Symptom, float]:
        """Seconds after which each finding came first."""
        found: dict[Symptom, float] = {}
        begun_s = self.now_s
        for _ in range(seconds):
            self.now_s += 1
            if tokens:
                self.token_s = self.now_s
            seen = Observation(self.now_s, computes, active, self.token_s, gpu)
            if (finding := self.watch.look(seen)) is not None:
                found.setdefault(finding, self.now_s - begun_s)
        return found

    def answer(
        self, seconds: int, *, wait_s: float = 0.0, rate: float = 50.0, active: int = SLOTS, took_s: float = 2.0
    ) -> dict[Symptom, float]:
        """One answer each second for so long."""
        found: dict[Symptom, float] = {}
        for second in range(1, seconds + 1):
            sample = TimedAnswer(self.now_s, TINY, SLOTS, active, took_s, wait_s, 100, 100 / rate)
            self.watch.answered(sample)
            for finding in self.look(1, active=active, tokens=True):
                found.setdefault(finding, second)
        return found


def test_no_token_from_any_slot_is_a_stall() -> None:
    assert Server().look(302) == {Symptom.STALLED: 300}


def test_a_stall_is_found_again_only_after_as_long_a_time() -> None:
    server = Server()
    assert server.look(310) == {Symptom.STALLED: 300}
    assert server.look(280) == {}
    assert server.look(20) == {Symptom.STALLED: 10}


def test_tokens_for_one_request_speak_for_the_others() -> None:
    assert Server().look(2000, tokens=True) == {}


def test_a_server_without_requests_may_be_silent() -> None:
    server = Server()
    assert server.look(1000, active=0, gpu=0) == {}
    assert server.look(59, gpu=0) == {}, "silence counts from the first request"


def test_a_long_prompt_keeps_the_gpu_busy_and_is_no_stall() -> None:
    server = Server()
    assert server.look(1100, gpu=97) == {}
    assert server.look(110, gpu=97) == {Symptom.STALLED: 100}


@pytest.mark.parametrize("gpu", [0, None])
def test_a_slow_load_is_no_fault(gpu: int | None) -> None:
    server = Server()
    assert server.look(5000, gpu=gpu, computes=False) == {}
    assert server.look(59, gpu=gpu) == {}, "silence counts from the end of the load"


def test_work_in_flight_beside_an_idle_gpu_is_suspicious() -> None:
    assert Server().look(62, gpu=1) == {Symptom.GPU_IDLE: 60}


def test_an_idle_gpu_does_not_hide_the_stall() -> None:
    found = Server().look(310, gpu=0)
    assert found[Symptom.STALLED] == 300


def test_an_idle_gpu_counts_from_its_last_work() -> None:
    server = Server()
    assert server.look(100, gpu=50) == {}
    assert server.look(59, gpu=0) == {}
    assert server.look(3, gpu=0) == {Symptom.GPU_IDLE: 1}


def test_tokens_beside_an_idle_gpu_are_tokens() -> None:
    assert Server().look(200, gpu=0, tokens=True) == {}


def test_nobody_knows_the_utilisation_of_a_remote_server() -> None:
    assert Server().look(200, gpu=None) == {}


def test_answers_that_wait_although_there_are_slots_show_a_leak() -> None:
    server = Server()
    assert server.answer(30) == {}
    assert server.answer(62, wait_s=0.6) == {Symptom.SLOTS_LEAKING: 61}


def test_a_leak_is_found_again_only_after_as_long_a_time() -> None:
    server = Server()
    assert server.answer(61, wait_s=0.6) == {Symptom.SLOTS_LEAKING: 61}
    assert server.answer(60, wait_s=0.6) == {}
    assert server.answer(1, wait_s=0.6) == {Symptom.SLOTS_LEAKING: 1}


def test_a_leak_is_found_at_part_load_too() -> None:
    assert Server().answer(62, wait_s=0.6, active=SLOTS - 1) == {Symptom.SLOTS_LEAKING: 61}


def test_the_noise_of_the_clock_is_no_leak() -> None:
    assert Server().answer(200, wait_s=0.2) == {}
    assert Server().answer(200, wait_s=0.6, took_s=20) == {}


def test_waits_are_forgiven_when_all_slots_are_busy_and_nobody_waits() -> None:
    server = Server()
    for _ in range(10):
        assert server.answer(30, wait_s=0.6) == {}
        assert server.answer(1) == {}


def test_at_part_load_no_wait_proves_nothing() -> None:
    server = Server()
    found: dict[Symptom, float] = {}
    for _ in range(22):
        found |= server.answer(2, wait_s=0.6)
        found |= server.answer(1, active=1)
    assert Symptom.SLOTS_LEAKING in found


def test_a_few_waits_long_ago_are_no_leak() -> None:
    server = Server()
    server.answer(5, wait_s=0.6)
    assert server.look(600, active=0) == {}


def test_far_below_its_own_best_is_slow() -> None:
    server = Server()
    assert server.answer(60, rate=50) == {}
    found = server.answer(120, rate=5)
    assert list(found) == [Symptom.SLOW]
    assert 60 < found[Symptom.SLOW] < 90


def test_half_its_own_best_is_not_slow() -> None:
    server = Server()
    server.answer(60, rate=50)
    assert server.answer(300, rate=25) == {}


def test_speeds_are_compared_only_where_every_slot_is_busy() -> None:
    server = Server()
    server.answer(60, rate=50, active=1)
    assert server.answer(100, rate=10) == {}, "one request alone is faster than each of many"
    assert server.answer(100, rate=1, active=1) == {}


def test_one_slow_answer_and_a_pause_is_not_slow() -> None:
    server = Server()
    server.answer(60, rate=50)
    server.answer(20, rate=5)
    assert server.look(600, active=0) == {}


def test_after_a_remedy_the_best_still_counts_until_it_is_given_up() -> None:
    server = Server()
    server.answer(60, rate=50)
    server.watch.begin_again()
    assert server.answer(120, rate=5)[Symptom.SLOW] > 65, "a speed is known only after some answers"
    server.watch.begin_again(forget_speed=True)
    assert server.answer(300, rate=5) == {}


def test_a_server_back_at_its_speed_begins_again_with_the_mildest_remedy() -> None:
    server = Server()
    server.answer(60, rate=50)
    server.watch.slow_remedies = 1
    server.answer(1, rate=50)
    assert server.watch.slow_remedies == 0


def test_a_factor_of_zero_switches_the_rule_off() -> None:
    server = Server({"slow_factor": 0})
    server.answer(60, rate=50)
    assert server.answer(200, rate=1) == {}
