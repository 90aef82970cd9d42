from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest

from obatchd.cli.command import clean
from obatchd.cli.views import text
from obatchd.cli.views.status import job_table, people_line
from obatchd.words import shortened


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


def test_a_text_that_is_cut_says_so() -> None:
    """Before, it ended in the middle of a word."""
    assert shortened("a b", 3) == "a b"
    assert shortened("the server is busy now", 15) == "the server is…"
    assert shortened("x" * 20, 10) == "x" * 9 + "…"


def test_results_are_found_below_the_name_of_their_owner(tmp_path: Path) -> None:
    """Before, below a number, which the pages do not mention."""
    (tmp_path / "0").mkdir()
    assert text.place(str(tmp_path / "0/a.job")) == str(tmp_path / "0/a.job")
    (tmp_path / "root").symlink_to("0")
    assert text.place(str(tmp_path / "0/a.job")) == str(tmp_path / "root/a.job")
    (tmp_path / "root").unlink()
    (tmp_path / "root").symlink_to("1")  # of an earlier user of that name
    for path in (str(tmp_path / "0/a.job"), "/batch/outbox/a.job", "/outbox/99999999999999999999/a.job", ""):
        assert text.place(path) == path


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


def test_long_names_are_shortened_in_their_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_width", lambda: 40)
    rows = [["gpu-rack17-chassis03-of-the-lab.gpu0", "ready", "word " * 9], ["node01.gpu0", "ready", "–"]]
    lines = [click.unstyle(line) for line in text.table(("=SERVER", "STATE", "~"), rows)]
    assert lines[1].startswith("gpu-rack17-chas…lab.gpu0  ready  word") and lines[2].startswith("node01.gpu0  ")
    assert max(map(len, lines)) <= 40


def test_a_column_that_gives_way_may_be_left_out_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_width", lambda: 12)
    rows = [["0123456789", "a model of ours"]]
    assert [click.unstyle(line) for line in text.table(("NAME", "?~MODEL"), rows)] == ["NAME", "0123456789"]


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


def test_names_of_jobs_keep_room_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {
        "job": "20261128-101112-abcd",
        "name": "patients-2026.csv",
        "state": "running",
        "paused": False,
        "owner": os.getuid(),
    }
    job |= {"requests": 5000, "indexed": 5000, "succeeded": 1200, "failed": 12, "cancelled": 0, "expired": 0}
    job |= {"in_flight": 32, "requests_per_s": 12.5, "tokens_per_s": 2400.0, "eta_s": 3723.0}
    monkeypatch.setattr(text, "_width", lambda: 80)
    lines = [click.unstyle(line) for line in job_table([job])]
    assert "patients-2026.csv" in lines[1] and "20261128-101112-abcd" in lines[1]
    assert max(map(len, lines)) <= 80
    long = [click.unstyle(line) for line in job_table([job | {"name": "patients-of-all-years-2001-to-2026.csv"}])]
    assert "patients-of-all-ye…" in long[1]


def test_labels_of_jobs_have_a_column_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {
        "job": "20261128-101112-abcd",
        "name": "a.csv",
        "state": "running",
        "paused": False,
        "requests": 5,
        "owner": os.getuid(),
    }
    job |= dict.fromkeys(("indexed", "succeeded", "failed", "cancelled", "expired", "in_flight"), 0)
    job |= dict.fromkeys(("requests_per_s", "tokens_per_s", "eta_s"))
    heading, first, second = map(click.unstyle, job_table([job | {"label": "study 1"}, job]))
    assert heading.split()[:4] == ["JOB", "STATE", "NAME", "LABEL"]
    assert first[heading.index("LABEL") :].startswith("study 1  ") and "study" not in second
    assert "LABEL" not in job_table([job])[0]
    monkeypatch.setattr(text, "_width", lambda: 80)
    long = job | {"label": "the whole study of all wards", "name": "patients-2026.csv", "requests": 5000}
    narrow = [click.unstyle(line) for line in job_table([long])]
    assert max(map(len, narrow)) <= 80 and "patients-2026.csv" in narrow[1]


def test_the_line_of_people_says_what_there_is() -> None:
    state = {"waiting": 1, "in_flight": 2, "answered": 30, "first_token_p95_s": 0.1234, "reserved_slots": 1}
    told = "1 request waiting, 2 in a slot, 30 answered, 95 % began within 0.12 s, 1 slot kept free"
    assert people_line(state) == told
    assert people_line(state | {"first_token_p95_s": None, "reserved_slots": 0}) == told.partition(", 95")[0]
