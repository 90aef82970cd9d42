"""The verdict over the figures of ``scripts/soak``."""

from __future__ import annotations

from soak_verdict import MOST_AN_HOUR, judged


def _minutes(count: int, **an_hour: float) -> list[dict[str, float]]:
    """Figures of so many minutes, of which the named ones grow by so much an hour."""
    return [
        {"minute": float(minute), "occupancy": 0.99, "violations": 0.0}
        | {name: 100 + an_hour.get(name, 0.0) * minute / 60 for name in MOST_AN_HOUR}
        for minute in range(1, count + 1)
    ]


def _bad(figures: list[dict[str, float]]) -> list[str]:
    return [each.words.partition(":")[0] for each in judged(figures) if not each.good]


def test_flat_figures_are_good() -> None:
    assert _bad(_minutes(120)) == []


def test_each_figure_that_grows_by_more_than_it_may_is_told() -> None:
    for name, most in MOST_AN_HOUR.items():
        assert _bad(_minutes(120, **{name: 1.1 * most})) == [name]
        assert _bad(_minutes(120, **{name: 0.9 * most})) == []


def test_a_short_run_may_add_as_much_as_an_hour() -> None:
    assert _bad(_minutes(30, head_mib=15.0)) == []
    assert _bad(_minutes(30, head_mib=25.0)) == ["head_mib"]


def test_what_is_not_settled_yet_does_not_count() -> None:
    figures = _minutes(100)
    for minute, each in enumerate(figures[:20]):
        each["head_mib"] = 5.0 * minute
    assert _bad(figures) == []


def test_slots_that_stood_empty_and_wrong_answers_are_told() -> None:
    figures = _minutes(60)
    for each in figures:
        each["occupancy"] = 0.97
    figures[-1]["violations"] = 2.0
    assert _bad(figures) == ["occupancy", "2 answers or calls were wrong"]


def test_a_few_minutes_are_not_judged() -> None:
    assert len(_bad(_minutes(4))) == 1
