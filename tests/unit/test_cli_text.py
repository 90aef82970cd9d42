from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest

from obatchd.cli.command import clean
from obatchd.cli.views import text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, "–"), (0.4, "0 s"), (59.6, "1 min"), (125, "2 min 5 s"), (3600, "1 h"), (90_061, "1 d 1 h")],
)
def test_duration(seconds: float | None, expected: str) -> None:
    assert text.duration(seconds) == expected


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [(None, "–"), (0, "0 B"), (1536, "1.5 KiB"), (5 * 1024**3, "5.0 GiB"), (2**50, "1024.0 TiB")],
)
def test_size(size_bytes: int | None, expected: str) -> None:
    assert text.size(size_bytes) == expected


def test_bar() -> None:
    assert text.bar(0, 10, width=4) == "░░░░   0 %"
    assert text.bar(5, 10, width=4) == "██░░  50 %"
    assert text.bar(12, 10, width=4) == "████ 100 %"
    assert text.bar(1, None) == "–"


def test_age() -> None:
    then = (datetime.now(UTC) - timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    assert text.age_s(then) == pytest.approx(3600, abs=60)
    assert text.age_s(None) is None


def test_a_table_fits_a_narrow_terminal_and_cuts_only_what_may_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["gpu0", "ready", "a-model-with-a-long-name", 3], ["gpu1", "failed", None, 12]]
    headings = ("SERVER", "STATE", "~MODEL", ">BUSY")
    wide = [click.unstyle(line) for line in text.table(headings, rows)]
    assert wide[1] == "gpu0    ready   a-model-with-a-long-name     3"
    monkeypatch.setattr(text, "_width", lambda: 35)
    narrow = [click.unstyle(line) for line in text.table(headings, rows)]
    assert narrow == [
        "SERVER  STATE   MODEL          BUSY",
        "gpu0    ready   a-model-with…     3",
        "gpu1    failed  –                12",
    ]
    monkeypatch.setattr(text, "_width", lambda: 26)
    assert max(len(click.unstyle(line)) for line in text.table(headings, rows)) <= 26


def test_a_table_leaves_out_what_it_may_before_it_breaks_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["a-name-of-some-length", "12.5", "99"]]
    monkeypatch.setattr(text, "_width", lambda: 14)
    assert [click.unstyle(line) for line in text.table(("~NAME", "?>PER S", ">DONE"), rows)] == [
        "NAME      DONE",
        "a-name-…    99",
    ]
    monkeypatch.setattr(text, "_width", lambda: 5)
    assert len(text.table(("~NAME", "?>PER S", ">DONE"), rows)) == 2


def test_states_have_colours() -> None:
    assert text.styled("ready  ") == click.style("ready  ", fg="green")
    assert click.unstyle(text.styled("unheard of")) == "unheard of"


def test_control_characters_never_reach_a_terminal() -> None:
    assert clean("a\x1b[31m\r\nb\u202e") == "a\ufffd[31m\ufffd\ufffdb\ufffd"
    assert clean("a\nb", keep="\n") == "a\nb"


def test_wide_characters_keep_a_table_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["米🦙.txt", "1"], ["e\N{COMBINING ACUTE ACCENT}", "2"], ["plain.txt", "3"]]
    assert text.table(("~NAME", "N"), rows)[1:] == [
        "米🦙.txt   1", "e\N{COMBINING ACUTE ACCENT}          2", "plain.txt  3"
    ]  # fmt: skip
    monkeypatch.setattr(text, "_width", lambda: 9)
    assert text.table(("~NAME", "N"), [["米米米米.txt", "1"]])[1] == "米米…   1"
