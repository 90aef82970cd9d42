"""``obatchctl servers --tuning``: the document, and the page that people see."""

from __future__ import annotations

from typing import Any

import click
import msgspec
import pytest
from dispatch_support import SMALL
from settings_support import in_force
from tuning_support import Clock, Hall, TunedPort

from obatchd.cli.views import text
from obatchd.cli.views.tuning import tuning_page
from obatchd.documents.tuning import SlotTuning, TriedSlots, TunedProfile
from obatchd.operations.tuning import tuning_document
from obatchd.simulator.config import Throughput


async def documents(monkeypatch: pytest.MonkeyPatch, seconds: float, **servers: Any) -> tuple[SlotTuning, list[str]]:
    """After so long a time of a long job on a server that is fastest with 32 slots and can have 48."""
    clock = Clock()
    port = TunedPort("gpu0", {SMALL: Throughput([(1, 20.0), (32, 300.0), (64, 250.0)])}, clock)
    port.fits[SMALL] = 48
    hall = Hall(monkeypatch, clock, port, tune_pause_s=1)
    await hall.start()
    hall.fill(1, 40_000, SMALL)
    await hall.run(seconds)
    document = tuning_document(hall.tuner, in_force(servers=servers).value.servers, managed=True)
    await hall.dispatcher.stop()
    return document, [click.unstyle(line) for line in tuning_page(msgspec.to_builtins(document))]


async def test_a_search_shows_what_is_measured_now(monkeypatch: pytest.MonkeyPatch) -> None:
    document, page = await documents(monkeypatch, 130)
    [profile] = document.profiles
    assert (profile.state, profile.chosen, document.tune) == ("measuring", None, True)
    assert [(one.slots, one.state) for one in profile.tried] == [(8, "measured"), (16, "measuring")]
    assert page[0] == "small (4096) on L40S, Ollama 0.24.0, driver 555.1"
    assert "gpu0 measures 16 slots" in page[1]
    [row] = [line for line in page if line.split()[0] == "16"]
    assert "is measured now" in row


def test_the_page_fits_80_columns_and_cuts_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_width", lambda: 80)
    measured = TriedSlots(8, "measured", 12_345.6, 162_823.0, 14_421.0, 0.16, 200, 4 * 1024**3, "2026-11-29T01:40:00Z")
    measuring = TriedSlots(16, "measuring", None, None, None, None, 1234, 79 * 1024**3, None)
    profile = TunedProfile(
        "2 x NVIDIA RTX 6000 Ada Generation", "llama3.1:70b-instruct-q4_K_M", 131_072, "measuring", None,
        "group0 measures 16 slots", 268_435_456, "0.24.0", "570.133.20", "", [measured, measuring],
    )  # fmt: skip
    page = [click.unstyle(line) for line in tuning_page(msgspec.to_builtins(SlotTuning(True, "", [profile])))]
    assert max(map(len, page)) <= 80 and "…" not in "".join(page)
    [row] = [line for line in page if line.split()[0] == "16"]
    assert "is measured now" in row


async def test_the_end_says_which_number_is_used_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    document, page = await documents(monkeypatch, 3600)
    [profile] = document.profiles
    assert (profile.state, profile.chosen) == ("found", 32)
    assert {one.slots: one.state for one in profile.tried}[64] == "does_not_fit"
    assert page[1] == f"  32 slots: the fastest of {len(profile.tried) - 1} numbers that were measured"
    [row] = [line for line in page if "chosen" in line]
    assert row.split()[0] == "32" and any("does not fit" in line for line in page)


@pytest.mark.parametrize(
    ("servers", "words"),
    [({"slots": 12}, "servers.slots is 12"), ({"tune": False}, "servers.tune is false")],
)
async def test_where_nothing_is_searched_the_page_says_so(
    monkeypatch: pytest.MonkeyPatch, servers: dict[str, Any], words: str
) -> None:
    document, page = await documents(monkeypatch, 200, **servers)  # of an earlier run
    assert not document.tune and words in document.reason
    assert {profile.state for profile in document.profiles} == {"off"}
    assert page[0].startswith("No numbers of slots are tried") and not any("measures" in line for line in page)
    assert sum(words in line for line in page) == 1


async def test_what_was_fastest_is_no_choice_where_nothing_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    document, page = await documents(monkeypatch, 3600, slots=12)
    [profile] = document.profiles
    assert (profile.state, profile.chosen) == ("off", 32)
    assert "  32 slots were the fastest when that was measured" in page
    [row] = [line for line in page if "fastest" in line and line.split()[0] == "32" and "slots" not in line]
    assert "chosen" not in "".join(page) and row.split()[1] == "fastest"


def test_a_daemon_that_measured_nothing_says_what_it_waits_for() -> None:
    document = msgspec.to_builtins(SlotTuning(True, "", []))
    assert tuning_page(document) == ["Nothing is measured yet: obatchd tries numbers of slots while long jobs run."]
