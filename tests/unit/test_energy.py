"""The energy of jobs: meters of cards, the parts of jobs that share a server, and what is told of it."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from dispatch_support import Port
from engine_support import Street, street, until

from obatchd.cli.views.job import price
from obatchd.delivery import energy as energy_module
from obatchd.delivery.energy import cost_so_far
from obatchd.delivery.shares import Running, ServerShares, Share, weighed
from obatchd.dispatch.interactive.lease import Question
from obatchd.dispatch.protocol import INTERACTIVE
from obatchd.documents.jobs import CostSoFar, JobTotals
from obatchd.gpus.energy import EnergyMeters
from obatchd.gpus.model import Identity, Reading
from obatchd.live.models import EnergyReading
from obatchd.words import energy, three_digits

A, B = 1, 2


# Meters.


def test_a_meter_counts_from_the_first_reading_and_over_a_gap() -> None:
    meters = EnergyMeters()
    assert meters.of(["x"]) is None and not meters.tells("x")
    for at_s, counter_j in ((0.0, 5000.0), (2.0, 5600.0), (62.0, 9000.0)):  # nothing was read for a minute
        meters.add("x", counter_j, at_s)
    assert meters.of(["x"]) == (62.0, 4000.0, 0) and meters.tells("x")


def test_a_counter_that_begins_anew_is_a_break_and_never_less_energy() -> None:
    meters = EnergyMeters()
    for at_s, counter_j in ((0.0, 5000.0), (2.0, 5600.0), (4.0, 30.0), (6.0, 330.0)):
        meters.add("x", counter_j, at_s)
    assert meters.of(["x"]) == (6.0, 900.0, 1)


def test_a_group_has_the_sum_of_its_cards_where_all_were_read_together() -> None:
    meters = EnergyMeters()
    meters.add("x", 0.0, 0.0)
    assert meters.of(["x", "y"]) is None
    meters.add("y", 0.0, 0.0)
    meters.add("x", 100.0, 2.0)
    assert meters.of(["x", "y"]) is None  # the other one could not be read
    meters.add("y", 50.0, 2.0)
    assert meters.of(["x", "y"]) == (2.0, 150.0, 0)


def test_a_card_that_tells_no_energy_or_is_lost_moves_no_meter() -> None:
    meters = EnergyMeters()
    card = Identity("x")
    meters.readings_of_cards([(card, Reading("x", 0.0, power_w=300.0))])
    assert meters.of(["x"]) is None
    meters.readings_of_cards([(card, Reading("x", 0.0, energy_j=10.0))])
    first = meters.of(["x"])
    meters.readings_of_cards([(card, Reading("x", 0.0, trouble="lost"))])
    assert first is not None and meters.of(["x"]) == first


# Parts.


class Card:
    """A server whose counter is read every two seconds, and that takes ``idle_w``, or ``busy_w`` while it works."""

    def __init__(self, idle_w: float = 60.0, busy_w: float = 300.0) -> None:
        self.shares = ServerShares()
        self.idle_w, self.busy_w = idle_w, busy_w
        self.now_s = self.energy_j = 0.0
        self.breaks = 0
        self.parts: dict[int, Share] = {}
        self.read()

    def pass_s(self, seconds: float, *, busy: bool = True) -> None:
        self.now_s += seconds
        self.energy_j += seconds * (self.busy_w if busy else self.idle_w)

    def read(self, *running: Running) -> None:
        reading = EnergyReading(self.now_s, self.energy_j, self.breaks)
        for job, share in self.shares.read(reading, running).items():
            self.give(job, share)

    def give(self, job: int, share: Share) -> None:
        had = self.parts.get(job, Share(0.0, 0.0))
        self.parts[job] = Share(had.energy_j + share.energy_j, had.tokens + share.tokens)

    def take(self, job: int, *running: Running) -> None:
        self.give(job, self.shares.take(job, running))

    def idle(self, seconds: float) -> None:
        """Nothing runs, and the counter is read all the time."""
        for _ in range(int(seconds / 2)):
            self.pass_s(2.0, busy=False)
            self.read()


def test_two_jobs_share_a_card_by_their_tokens() -> None:
    card = Card()
    for _ in range(10):
        card.pass_s(2.0)
        card.shares.answered(A, card.now_s - 2.0, card.now_s, 30.0)
        card.shares.answered(B, card.now_s - 2.0, card.now_s, 10.0)
        card.read()
    card.take(A)
    card.take(B)
    assert card.parts[A].energy_j == pytest.approx(4500.0) and card.parts[B].energy_j == pytest.approx(1500.0)
    assert card.parts[A].tokens == pytest.approx(300.0) and card.parts[B].tokens == pytest.approx(100.0)


def test_a_long_answer_gets_its_part_of_all_the_time_that_it_took() -> None:
    card = Card()
    for _ in range(20):  # a short answer every two seconds beside one of 40 s
        card.pass_s(2.0)
        card.shares.answered(B, card.now_s - 2.0, card.now_s, 20.0)
        card.read(Running(A, 0.0))
    card.shares.answered(A, 0.0, 40.0, 1200.0)
    card.idle(10.0)
    assert card.parts[A].energy_j == pytest.approx(12_000 * 0.75) and card.parts[B].energy_j == pytest.approx(3000)


def test_beside_an_answer_that_takes_hours_the_others_get_their_parts_within_a_minute() -> None:
    card = Card()
    for _ in range(100):
        card.pass_s(2.0)
        card.shares.answered(B, card.now_s - 2.0, card.now_s, 20.0)
        card.read(Running(A, 0.0))
    assert card.parts[B].energy_j == pytest.approx(0.5 * 300 * (200 - 60), rel=0.05)  # A seems to make as many tokens
    card.shares.answered(A, 0.0, 200.0, 2000.0)
    card.idle(80.0)
    assert card.parts[A].energy_j == pytest.approx(30_000, rel=0.02)
    assert card.parts[A].energy_j + card.parts[B].energy_j == pytest.approx(60_000)


def test_a_job_that_is_over_leaves_the_part_of_a_request_that_still_runs() -> None:
    card = Card()
    for _ in range(20):
        card.pass_s(2.0)
        card.shares.answered(B, card.now_s - 2.0, card.now_s, 20.0)
        card.read(Running(A, 0.0))
    card.take(B, Running(A, 0.0))  # by then it has made as many tokens, as far as one can tell
    assert card.parts[B].energy_j == pytest.approx(6000.0)
    card.shares.answered(A, 0.0, 40.0, 1200.0)
    card.idle(10.0)
    assert card.parts[A].energy_j == pytest.approx(6000.0)  # what is left, and not more than there was


def test_idle_time_is_charged_to_nobody() -> None:
    card = Card()
    card.idle(10.0)
    card.pass_s(1.0, busy=False)
    card.pass_s(0.5)
    card.shares.answered(A, card.now_s - 0.5, card.now_s, 10.0)
    card.pass_s(0.5, busy=False)
    card.read()
    card.idle(20.0)
    assert card.parts == {A: Share(pytest.approx(150.0), pytest.approx(10.0))}


def test_without_an_idle_span_before_it_idle_time_is_taken_off_in_proportion() -> None:
    card = Card()
    card.pass_s(1.0)
    card.shares.answered(A, 0.0, 1.0, 10.0)
    card.pass_s(1.0, busy=False)
    card.read()
    card.take(A)
    assert card.parts[A].energy_j == pytest.approx(180.0)  # half of 360; the work took 300


def test_the_last_seconds_of_a_job_cost_what_tokens_took_before() -> None:
    card = Card()
    for _ in range(10):
        card.pass_s(2.0)
        card.shares.answered(A, card.now_s - 2.0, card.now_s, 20.0)
        card.read()
    card.pass_s(1.0)
    card.shares.answered(A, card.now_s - 1.0, card.now_s, 10.0)
    card.take(A)  # before the counter is read again
    assert card.parts[A] == Share(pytest.approx(6300.0), pytest.approx(210.0))


def test_what_a_guess_gave_too_much_is_taken_off_later() -> None:
    card = Card()
    for _ in range(10):
        card.pass_s(2.0)
        card.shares.answered(A, card.now_s - 2.0, card.now_s, 20.0)
        card.read()
    card.busy_w = 100.0
    card.pass_s(1.0)
    card.shares.answered(A, card.now_s - 1.0, card.now_s, 10.0)  # of a smaller model
    card.take(A)
    assert card.parts[A].energy_j == pytest.approx(6300.0)
    card.busy_w = 300.0
    card.pass_s(1.0, busy=False)
    card.read()
    for _ in range(20):
        card.pass_s(2.0)
        card.shares.answered(B, card.now_s - 2.0, card.now_s, 20.0)
        card.read()
    card.take(B)
    assert sum(part.energy_j for part in card.parts.values()) <= card.energy_j


def test_a_guess_is_never_more_than_the_highest_power_allows() -> None:
    card = Card()
    for _ in range(10):
        card.pass_s(2.0)
        card.shares.answered(A, card.now_s - 2.0, card.now_s, 20.0)
        card.read()
    for job in (A, B):  # within one span both make tokens a thousand times as fast
        card.pass_s(0.5)
        card.shares.answered(job, card.now_s - 0.5, card.now_s, 5000.0)
        card.take(job)
    assert card.parts[A].energy_j == pytest.approx(6150.0) and card.parts[B].energy_j == pytest.approx(150.0)


def test_a_job_that_is_over_before_anything_was_metered_gets_nothing_and_nobody_pays_for_it() -> None:
    card = Card()
    card.pass_s(1.0)
    card.shares.answered(A, 0.0, 1.0, 10.0)
    assert card.shares.take(A) == Share(0.0, 0.0)
    card.pass_s(1.0)
    card.shares.answered(B, 1.0, 2.0, 10.0)
    card.read()
    card.take(B)
    assert card.parts[B] == Share(pytest.approx(300.0), pytest.approx(10.0))


def test_what_a_guess_gave_too_little_is_nobodys() -> None:
    card = Card()
    for _ in range(10):
        card.pass_s(2.0)
        card.shares.answered(A, card.now_s - 2.0, card.now_s, 200.0)
        card.read()
    card.pass_s(1.0)
    card.shares.answered(A, card.now_s - 1.0, card.now_s, 10.0)  # a slower model: a token takes ten times as much
    card.take(A)
    card.pass_s(1.0)
    card.shares.answered(B, card.now_s - 1.0, card.now_s, 10.0)
    card.read()
    card.take(B)
    assert card.parts[B].energy_j == pytest.approx(300.0)


def test_time_over_which_the_counter_began_anew_is_nobodys_and_says_so() -> None:
    card = Card()
    for number in range(10):
        card.pass_s(2.0)
        card.shares.answered(A, card.now_s - 2.0, card.now_s, 20.0)
        card.breaks += number == 4
        card.read()
    card.take(A)
    assert card.parts[A] == Share(pytest.approx(5400.0), pytest.approx(180.0))


def test_answers_without_a_token_cost_nothing_and_break_nothing() -> None:
    card = Card()
    for _ in range(10):
        card.pass_s(2.0)
        card.shares.answered(A, card.now_s - 2.0, card.now_s, 0.0)
        card.read()
    card.idle(20.0)
    card.take(A)
    assert card.parts == {A: Share(0.0, 0.0)}


def test_a_gap_in_the_readings_loses_nothing() -> None:
    card = Card()
    for number in range(30):
        card.pass_s(2.0)
        card.shares.answered(A, card.now_s - 2.0, card.now_s, 20.0)
        if not 5 <= number < 25:
            card.read()
    card.take(A)
    assert card.parts[A] == Share(pytest.approx(18_000.0), pytest.approx(600.0))


def test_an_answer_of_hours_keeps_few_spans_and_all_energy() -> None:
    card = Card()
    for _ in range(3600):
        card.pass_s(2.0)
        card.shares.answered(B, card.now_s - 2.0, card.now_s, 10.0)
        card.read(Running(A, 0.0))
        assert len(card.shares._spans) <= 65
    card.shares.answered(A, 0.0, card.now_s, 36_000.0)
    card.take(B)
    card.take(A)
    assert card.parts[A].energy_j == pytest.approx(card.parts[B].energy_j, rel=0.01)
    assert sum(part.energy_j for part in card.parts.values()) == pytest.approx(card.energy_j)


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_never_more_than_the_energy_and_most_of_it_while_it_works(seed: int) -> None:
    """Jobs of random lengths on four slots; each takes its part when its last answer has come."""
    chance, card = random.Random(seed), Card()
    left = {job: chance.randint(1, 60) for job in range(40)}
    waiting = [job for job, number in left.items() for _ in range(number)]
    chance.shuffle(waiting)
    slots: list[tuple[float, Running]] = []
    next_read_s = 2.0
    while waiting or slots:
        while waiting and len(slots) < 4:
            slots.append((card.now_s + chance.choice((0.05, 1.0, 5.0, 40.0)), Running(waiting.pop(), card.now_s)))
        slots.sort()
        end_s = min(slots[0][0], next_read_s)
        card.pass_s(end_s - card.now_s)
        if end_s == next_read_s:
            next_read_s += 2.0
            card.read(*(request for _, request in slots))
            continue
        _, ended = slots.pop(0)
        card.shares.answered(ended.job, ended.began_s, end_s, 1 + 40 * (end_s - ended.began_s) * chance.random())
        left[ended.job] -= 1
        if not left[ended.job]:
            card.take(ended.job, *(request for _, request in slots))
    given = sum(part.energy_j for part in card.parts.values())
    assert 0.9 * card.energy_j <= given <= 1.001 * card.energy_j


@pytest.mark.parametrize("seed", range(60))
def test_jobs_never_get_more_than_the_counter_told_nor_tokens_that_they_did_not_make(seed: int) -> None:
    """Jobs that come and go beside idle time; tokens of any speed, readings at any time, counters begun anew."""
    chance, card = random.Random(seed), Card(idle_w=random.Random(seed).choice((10.0, 60.0)))
    made: dict[int, float] = {}
    for job in range(1, 40):
        answers, slots = chance.choice((1, 5, 60)), chance.choice((1, 4))
        left, running = answers, list[tuple[float, Running]]()
        while left or running:
            while left and len(running) < slots:
                left -= 1
                running.append((card.now_s + chance.choice((0.05, 1.0, 5.0, 40.0)), Running(job, card.now_s)))
            running.sort()
            end_s, ended = running.pop(0)
            while card.now_s < end_s:
                card.pass_s(min(end_s - card.now_s, chance.choice((0.5, 2.0, 30.0))))
                if card.now_s < end_s:
                    card.breaks += chance.random() < 0.02
                    card.read(ended, *(request for _, request in running))
            tokens = chance.choice((0.0, 1.0, 50.0, 5000.0)) * (end_s - ended.began_s)
            card.shares.answered(job, ended.began_s, end_s, tokens)
            made[job] = made.get(job, 0.0) + tokens
        card.take(job)
        assert sum(part.energy_j for part in card.parts.values()) <= 1.001 * card.energy_j
        if chance.random() < 0.5:
            card.pass_s(chance.choice((0.3, 3.0)), busy=False)
            card.idle(chance.choice((0, 4, 90)))
    card.idle(120)
    assert all(part.energy_j >= 0 for part in card.parts.values())
    assert all(part.tokens <= made[job] * (1 + 1e-9) for job, part in card.parts.items())


# Jobs.


async def test_a_job_has_its_energy_in_summary_and_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        clock = Clock(monkeypatch)
        clock.meter(rig, 0.0)
        live = await rig.take("a", "b", "c")
        await rig.begun(live)
        clock.pass_s(10.0)
        await rig.answer(live, 1, 2)
        clock.meter(rig, 3000.0)
        await rig.answer(live, 3)
        summary = await rig.published(live)
        assert summary["energy_percent"] == 100.0 and summary["energy_note"] == ""
        assert 0 < summary["energy_j"] <= 4500.0
        assert summary["tokens_per_j"] == pytest.approx(15 / summary["energy_j"], abs=1e-4)
        counts = rig.row(live).summary
        assert counts is not None and counts["energy_j"] == summary["energy_j"]
        [sums] = rig.work.store.state.usage()
        assert sums.energy_j == summary["energy_j"]


async def test_what_people_ask_beside_a_job_is_not_paid_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paid_j = []
    for asked in (False, True):
        async with street(monkeypatch, tmp_path / str(asked)) as rig:
            clock = Clock(monkeypatch)
            clock.meter(rig, 0.0)
            if asked:
                lease = rig.engine.dispatcher.desk.ask(Question(b'{"prompt": "c"}'), 1000)
            live = await rig.take("a", "b")
            await rig.begun(live)
            clock.pass_s(10.0)
            await rig.answer(live, 1)
            if asked:
                await rig.answer_lease(lease)
            clock.pass_s(0.5)
            clock.meter(rig, 3000.0)
            clock.pass_s(60.0)
            clock.meter(rig, 6000.0)
            paid_j.append(live.energy_j)
    assert 0 < paid_j[1] < 0.7 * paid_j[0]


async def test_the_energy_of_a_job_survives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    async with street(monkeypatch, tmp_path) as rig:
        clock.meter(rig, 0.0)
        live = await rig.take("a", "b")
        await rig.begun(live)
        clock.pass_s(10.0)
        await rig.answer(live, 1)
        clock.meter(rig, 3000.0)
        before = rig.work.store.of(live.row).cost(live.key)
        assert before.energy_j == 0.0  # not certain yet
    async with street(monkeypatch, tmp_path) as rig:
        [again] = rig.work.jobs.values()
        assert 0 < again.energy_j <= 3000.0 and again.energy_tokens == pytest.approx(weighed(3, 5))
        kept_j = again.energy_j
        assert cost_so_far(again) == CostSoFar(3, 5, round(live.gpu_s, 3), pytest.approx(5 / kept_j, abs=1e-4))
        await rig.answer(again)  # by a server that no meter was read of
        summary = await rig.published(again)
        assert summary["energy_j"] == pytest.approx(kept_j, abs=0.001) and summary["energy_percent"] == 50.0
        assert summary["energy_note"] == "gpu0: it computes on the CPU"


async def test_a_job_does_not_pay_for_the_answers_to_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with street(monkeypatch, tmp_path, Port("gpu0", 4)) as rig:
        clock = Clock(monkeypatch)
        clock.meter(rig, 0.0)
        live = await rig.take("a", "b")
        await rig.begun(live)
        clock.pass_s(10.0)
        for _ in range(10):  # of a token each
            lease = rig.engine.dispatcher.desk.ask(Question(b'{"prompt": "why?"}'), 1000)
            await until(lambda: any(item.job == INTERACTIVE for item in rig.held()))
            rig.worker("gpu0").begin((INTERACTIVE, lease.number))
            rig.worker("gpu0").end((INTERACTIVE, lease.number))
            assert (await lease.result()).succeeded
        await rig.answer(live, 1)  # of five
        clock.meter(rig, 3000.0)
        await rig.answer(live, 2)
        summary = await rig.published(live)
        assert summary["energy_percent"] == 100.0
        assert 0 < summary["energy_j"] < 2000.0


async def test_a_job_on_servers_without_a_meter_says_why_it_has_no_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        live = await rig.take("a")
        await rig.answer(live)
        summary = await rig.published(live)
        assert (summary["energy_j"], summary["energy_percent"], summary["tokens_per_j"]) == (None, 0.0, None)
        assert summary["energy_note"] == "gpu0: it computes on the CPU"


class Clock:
    """The monotonic clock of the bill, which a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead_s = 0.0
        monkeypatch.setattr(energy_module, "monotonic_s", lambda: time.monotonic() + self._ahead_s)

    def pass_s(self, seconds: float) -> None:
        self._ahead_s += seconds

    def meter(self, rig: Street, energy_j: float) -> None:
        """The meter of the server is read."""
        rig.models.meters["gpu0"] = EnergyReading(energy_module.monotonic_s(), energy_j)
        rig.engine.completion.energy.look()


# Words.


@pytest.mark.parametrize(
    ("energy_j", "words"),
    [(0, "0 Wh"), (1, "below 0.001 Wh"), (4824, "1.34 Wh"), (359_000, "99.7 Wh"), (360_000, "0.100 kWh"),
     (4.5e6, "1.25 kWh"), (3.6e9, "1,000 kWh"), (1e12, "277,778 kWh")],
)  # fmt: skip
def test_energy_is_told_in_the_unit_that_fits(energy_j: float, words: str) -> None:
    assert energy(energy_j) == words


def test_numbers_keep_three_digits() -> None:
    told = [three_digits(value) for value in (0.001, 0.00999, 0.058, 0.58, 0.9999, 9.999, 12, 99.96, 123.4, 999.6)]
    assert told == ["0.00100", "0.00999", "0.0580", "0.580", "1.00", "10.0", "12.0", "100", "123", "1,000"]


def totals(**more: Any) -> JobTotals:
    return JobTotals(125.0, 2.4, 80.0, 3000, 10_000, 31.25, 0, 0, 0, **more)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "cost: 31.2 GPU-seconds; 3,000 tokens of prompts, 10,000 of answers"),
        (
            {"energy_j": 4.5e6, "energy_percent": 100.0, "tokens_per_j": 0.00222},
            "cost: 31.2 GPU-seconds, 1.25 kWh, 0.00222 tokens/J; 3,000 tokens of prompts, 10,000 of answers",
        ),
        (
            {"energy_j": 4.5e6, "energy_percent": 61.0, "energy_note": "gpu1: why", "tokens_per_j": None},
            "cost: 31.2 GPU-seconds, 1.25 kWh for 61 % of the tokens (gpu1: why); 3,000 tokens of prompts, "
            "10,000 of answers",
        ),
    ],
)
def test_the_cost_of_a_job_is_one_line(more: dict[str, Any], words: str) -> None:
    assert list(price({"totals": msgspec.to_builtins(totals(**more))})) == [words]


def test_a_job_without_gpus_or_of_an_earlier_version_has_no_line_of_costs() -> None:
    assert list(price({"totals": None})) == list(price({})) == []
    on_the_cpu = msgspec.to_builtins(totals()) | {"gpu_s": 0.0}
    assert list(price({"totals": on_the_cpu})) == []
    earlier = {name: value for name, value in msgspec.to_builtins(totals()).items() if "energy" not in name}
    assert list(price({"totals": earlier})) == ["cost: 31.2 GPU-seconds; 3,000 tokens of prompts, 10,000 of answers"]
