"""The search for the best slots, judged on curves whose best number is known, with a clock that only counts."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from obatchd.dispatch.protocol import ResultItem
from obatchd.dispatch.tuning.found import DOES_NOT_FIT, Found
from obatchd.dispatch.tuning.search import LADDER, MOST_WINDOWS, Tried, best_of, following
from obatchd.dispatch.tuning.window import Mix, Window
from obatchd.simulator.config import Throughput

SEEDS = 100
PROMPT_TOKENS_PER_S = 5000.0


def _points(**by_slots: float) -> list[tuple[int, float]]:
    return [(int(name[1:]), speed) for name, speed in by_slots.items()]


# Answer tokens per second of all slots; the numbers beyond ``fits`` do not fit.
CURVES = {
    "rises to the end": (_points(s1=50, s64=3200), 64),
    "rises ever less": ([(s, 2000 * s / (s + 12)) for s in range(1, 65)], 64),
    "rises and is level from 16 on": (_points(s1=60, s16=900, s64=910), 64),
    "is level": (_points(s1=500, s64=500), 64),
    "is level but for one slot": (_points(s1=200, s2=500, s64=500), 64),
    "falls from the beginning": (_points(s1=400, s64=100), 64),
    "falls from 4 on": (_points(s1=100, s4=400, s64=80), 64),
    "is highest at 12": (_points(s1=50, s12=700, s16=600, s64=300), 64),
    "is highest at 24": (_points(s1=40, s16=640, s24=900, s32=780, s64=500), 64),
    "is highest at 48": (_points(s1=30, s48=1500, s64=1200), 64),
    "rises to a cliff at 32": (_points(s1=50, s64=2500), 32),
    "rises to a cliff at 12": (_points(s1=50, s64=2500), 12),
}


def measure(curve: Throughput, slots: int, random_: random.Random, seconds_each: float = 4.0) -> tuple[Window, float]:
    """A full window, and the seconds it took; answers have tokens and times of their own."""
    window = Window(slots)
    tokens_at, share = seconds_each * curve.total(8) / 8, slots / curve.total(slots)
    while not window.full:
        tokens = max(1, int(random_.lognormvariate(0, 0.4) * tokens_at))
        eval_s = tokens * share * max(0.2, random_.gauss(1.0, curve.noise))
        prompt = random_.randint(50, 400)
        prompt_s = prompt / PROMPT_TOKENS_PER_S
        item = ResultItem(
            1, 1, 1, True, b"", prompt_s + eval_s, prompt, tokens, eval_s=eval_s, active=slots, wait_s=0.0
        )
        window.add(item, item.duration_s)
    return window, window.seconds


def true_speed(curve: Throughput, slots: int, mix: Mix) -> float:
    cost_s = mix.prompt_tokens / PROMPT_TOKENS_PER_S + mix.response_tokens * slots / curve.total(slots)
    return slots * sum(mix) / cost_s


def search(curve: Throughput, fits: int, seed: int, start: int = 8) -> Found:
    random_, found = random.Random(seed), Found(start)
    while (slots := found.following(0)) is not None:
        if slots > fits:
            found.cannot[slots] = DOES_NOT_FIT
            continue
        window, _ = measure(curve, slots, random_)
        found.compare_with(window.mix())
        found.note(window.speed(found.mix, 0.0))
    return found


@pytest.mark.parametrize("name", CURVES)
def test_the_search_ends_within_three_percent_of_the_best(name: str) -> None:
    points, fits = CURVES[name]
    curve = Throughput(points, noise=0.10)
    shares, windows = [], []
    for seed in range(SEEDS):
        found = search(curve, fits, seed)
        speeds = {slots: true_speed(curve, slots, found.mix) for slots in LADDER if slots <= fits}
        shares.append(speeds[best_of(found.tried).slots] / max(speeds.values()))
        windows.append(sum(one.windows for one in found.tried.values()))
        assert any(slots > 8 for slots in found.tried) or fits <= 8
        assert any(slots < 8 for slots in found.tried)
    assert sum(share >= 0.97 for share in shares) >= 95, sorted(shares)[:8]
    assert min(shares) >= 0.9
    assert max(windows) <= MOST_WINDOWS


@pytest.mark.parametrize("start", [1, 4, 32, 64])
@pytest.mark.parametrize("name", ["rises to the end", "falls from the beginning", "is highest at 12"])
def test_the_search_may_begin_anywhere(name: str, start: int) -> None:
    points, fits = CURVES[name]
    curve = Throughput(points, noise=0.10)
    for seed in range(10):
        found = search(curve, fits, seed, start)
        speeds = {slots: true_speed(curve, slots, found.mix) for slots in LADDER}
        assert speeds[best_of(found.tried).slots] >= 0.95 * max(speeds.values())
        assert sum(one.windows for one in found.tried.values()) <= MOST_WINDOWS


def test_a_narrow_win_in_much_noise_is_measured_again() -> None:
    tried = {slots: Tried(slots, speed, spread=0.04) for slots, speed in [(4, 60), (8, 100), (12, 101), (16, 70)]}
    assert following(8, tried, [4, 8, 12, 16]) in (8, 12)
    sure = {slots: Tried(slots, one.tokens_per_s, spread=0.004) for slots, one in tried.items()}
    assert following(8, sure, [4, 8, 12, 16]) is None


def test_a_mix_that_changes_is_no_gain() -> None:
    """Later windows have short prompts and long answers: the speed of the mix of the first one counts."""
    curve, random_ = Throughput([(1, 50.0), (64, 3200.0)]), random.Random(1)
    first, _ = measure(curve, 8, random_, seconds_each=8.0)
    second, _ = measure(curve, 8, random_, seconds_each=0.5)
    one, two = first.speed(first.mix(), 0.0), second.speed(first.mix(), 0.0)
    assert second.mix().response_tokens < first.mix().response_tokens / 8
    assert two.tokens_per_s == pytest.approx(one.tokens_per_s, rel=0.06)
    assert second.speed(second.mix(), 0.0).tokens_per_s != pytest.approx(one.tokens_per_s, rel=0.2)


@pytest.mark.parametrize("order", [(400, 4), (4, 400), (400, 4, 60)])
def test_prompts_of_other_lengths_are_no_gain_and_no_loss(order: tuple[int, ...]) -> None:
    """A job with long prompts ends within the search, and one with short ones follows: requests have a cost besides."""

    def window(slots: int, prompt: int) -> Window:
        made, overhead_s, eval_s = Window(slots), 0.02, 40 * 0.025  # as many answers a second as there are slots
        item = ResultItem(
            1, 1, 1, True, b"", overhead_s + prompt / 5000 + eval_s, prompt, 40, eval_s=eval_s, active=slots
        )
        while not made.full:
            made.add(item, item.duration_s)
        return made

    found = Found(8)
    for slots, prompt in zip((8, 16, 4), order, strict=False):
        one = window(slots, prompt)
        found.compare_with(one.mix())
        found.note(one.speed(found.mix, 0.0))
    per_slot = [tried.tokens_per_s / slots for slots, tried in found.tried.items()]
    assert per_slot == pytest.approx([per_slot[0]] * len(per_slot), rel=0.025)
    assert found.mix == (min(order), 40)


def test_a_window_ends_after_a_minute_or_two_hundred_answers_and_two_of_each_slot() -> None:
    def answers(slots: int, took_s: float, active: int | None = None) -> Window:
        window = Window(slots)
        item = ResultItem(1, 1, 1, True, b"", took_s, 10, 100, eval_s=took_s, active=active or slots)
        for _ in range(1000):
            window.add(item, took_s)
        return window

    assert answers(8, 0.1).answers == 200
    assert answers(8, 10.0).answers == 48 and answers(8, 10.0).seconds == pytest.approx(60)
    assert answers(64, 60.0).answers == 128
    assert answers(1, 60.0).answers == 24
    assert answers(8, 1.0, active=7).answers == 0  # a slot was free


def test_answers_that_ran_beside_more_than_the_number_that_is_measured_do_not_count() -> None:
    window = Window(4, settled=False)

    def answer(line: int, active: int) -> None:
        window.add(ResultItem(1, line, 1, True, b"", 8.0, 10, 100, eval_s=8.0, active=active), 8.0)

    answer(1, 16)  # the server is given fewer requests since just now
    window.settle({(1, 2), (1, 3), (1, 4), (1, 5)})
    for line in (2, 3, 4, 5):  # they ran beside twelve others at first
        answer(line, 16)
    assert window.answers == 0
    answer(6, 4)
    assert window.answers == 1


def test_numbers_that_cannot_fit_by_two_loads_are_not_tried() -> None:
    found = Found(8, vram_bytes={8: 10_000, 16: 18_000})
    assert found.slot_bytes == 1000
    assert found.fitting(34_500) == [1, 2, 4, 8, 12, 16, 24, 32]
    assert found.fitting(0) == list(LADDER)
    found.cannot[16] = DOES_NOT_FIT
    assert found.fitting(0) == [1, 2, 4, 8, 12]


def test_the_curve_goes_through_its_points() -> None:
    curve = Throughput([(1, 50.0), (8, 400.0), (64, 100.0)])
    assert [curve.total(busy) for busy in (0, 1, 8, 36, 64, 100)] == [0, 50, 400, 250, 100, 100]
    assert curve.of_one(8, "x") == 50
    noisy = Throughput(curve.points, noise=0.1)
    assert noisy.of_one(8, "x") == noisy.of_one(8, "x") != noisy.of_one(8, "y")
    assert all(one <= two for one, two in pairwise(sorted(noisy.total(n) for n in range(9))))
