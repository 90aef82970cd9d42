"""Which requests count as the same, and earlier answers that a job gets again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_support import Street, lines, records_of, street, until

from obatchd.dispatch.protocol import JobContext
from obatchd.intake.reuse import Reuse, context_sha256, fingerprint
from obatchd.jobs.store import Segment
from obatchd.ollama import faults
from obatchd.ollama.faults import Fault
from obatchd.settings.job import JobSettings

CONTEXT = JobContext(1, "job", "Be brief.", {"temperature": 0.5}, 100)
BASE = {"id": "a", "prompt": "What?", "options": {"top_k": 1, "seed": 2}, "note": "x"}


def key(request: dict[str, Any], context: str = "c", digest: str = "d") -> bytes | None:
    return fingerprint(json.dumps(request).encode(), context, digest)


@pytest.mark.parametrize(
    "same",
    [
        {**BASE, "id": "b"},
        {**BASE, "note": "y", "more": [1]},
        {**BASE, "model": "another-name"},
        {**BASE, "priority": "high", "context_length": 9000},
        {"options": {"seed": 2, "top_k": 1}, "content": "What?", "custom_id": "c"},
    ],
)
def test_id_passed_on_fields_and_spelling_do_not_matter(same: dict[str, Any]) -> None:
    assert key(same) == key(BASE) is not None


@pytest.mark.parametrize(
    "other",
    [
        {**BASE, "prompt": "What? "},
        {**BASE, "options": {"top_k": 2, "seed": 2}},
        {**BASE, "system": "Be long."},
        {**BASE, "format": "json"},
        {**BASE, "max_response_tokens": 7},
    ],
)
def test_what_bears_on_the_answer_does(other: dict[str, Any]) -> None:
    assert key(other) != key(BASE)
    assert key(BASE, context="other") != key(BASE) != key(BASE, digest="other")


def test_what_cannot_be_told_is_never_the_same() -> None:
    assert key({**BASE, "urls": ["https://example.org/"]}) is None
    assert fingerprint(b"not json", "c", "d") is None


def test_the_context_of_a_job_is_its_settings_not_its_name() -> None:
    assert context_sha256(CONTEXT) == context_sha256(msgspec.structs.replace(CONTEXT, job=2, name="other"))
    assert context_sha256(CONTEXT) != context_sha256(msgspec.structs.replace(CONTEXT, options={}))


# Whole jobs.


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    async with street(monkeypatch, tmp_path) as made:
        yield made


async def asked(rig: Street, *requests: str | dict[str, Any], **more: Any) -> tuple[list[int], dict[str, Any]]:
    """The lines of a job that were asked, and its summary."""
    live = await rig.take(*requests, **{"skip_done": True, **more})
    await until(lambda: not live.looking_back or live.complete)
    lines_asked = sorted(set(range(1, live.requests + 1)) - rig.done(live))
    if lines_asked:
        await rig.answer(live, *lines_asked, text="new")
    return lines_asked, await rig.published(live)


async def test_what_was_answered_before_is_copied_and_the_rest_is_asked(rig: Street) -> None:
    first = await rig.run({"id": "x", "prompt": "a", "note": 1}, "b")
    live = await rig.take("c", {"id": "y", "prompt": "a", "note": 2}, "d", skip_done=True)
    await rig.answer(live, 1, 3, text="new")
    summary = await rig.published(live)
    assert (summary["succeeded"], summary["copied"]) == (3, 1)
    copied = records_of(live.outbox)[1]
    assert (copied["id"], copied["line"], copied["response"], copied["input"]) == ("y", 2, "yes", {"note": 2})
    assert (copied["attempts"], copied["duration_s"], copied["servers"]) == (0, 0.0, [])
    assert copied["copied_from"] == f"{first.job}/1"
    assert [record["response"] for record in records_of(live.outbox)] == ["new", "yes", "new"]


async def test_a_job_that_was_answered_wholly_before_asks_nothing(rig: Street) -> None:
    await rig.run("a", "b")
    assert (await asked(rig, "b", "a", "a"))[0] == []


async def test_nothing_is_copied_unless_that_is_asked_for(rig: Street) -> None:
    await rig.run("a")
    assert (await asked(rig, "a", skip_done=None))[0] == [1]


async def test_only_the_named_job_is_looked_through(rig: Street) -> None:
    first, second = await rig.run("a", "b"), await rig.run("c")
    assert (await asked(rig, "a", "c", skip_done=second.job))[0] == [1]
    assert (await asked(rig, "a", "c", skip_done=first.job))[0] == [2]


async def test_the_latest_answer_is_the_one_that_is_copied(rig: Street) -> None:
    await rig.run("a")
    second = await rig.run("a")
    summary = (await asked(rig, "a"))[1]
    assert records_of(Path(rig.work.layout.outbox / f"drop.{summary['job']}"))[0]["copied_from"] == f"{second.job}/1"


@pytest.mark.parametrize(
    "other",
    [{"owner": 1001}, {"model": "large"}, {"system_message": "Be brief."}, {"options": {"seed": 1}}],
    ids=lambda other: next(iter(other)),
)
async def test_answers_that_might_differ_are_not_copied(rig: Street, other: dict[str, Any]) -> None:
    await rig.run("a")
    assert (await asked(rig, "a", **other))[0] == [1]


async def test_a_model_that_was_pulled_anew_is_asked_again_and_one_nobody_has_too(rig: Street) -> None:
    await rig.run("a")
    rig.models.digests["small"] = "another"
    assert (await asked(rig, "a"))[0] == [1]
    del rig.models.digests["small"]
    assert (await asked(rig, "a"))[0] == [1]


async def test_answers_of_servers_with_different_models_by_one_name_are_not_copied(rig: Street) -> None:
    rig.models.differing = {"gpu0": "sha-small", "gpu1": "another"}
    await rig.run("a")
    assert (await asked(rig, "a"))[0] == [1]


async def test_failures_are_not_copied(rig: Street) -> None:
    live = await rig.take("a", "b")
    await rig.answer(live, 1, fault=Fault(faults.REQUEST, "bad_request", "no"))
    await rig.answer(live, 2)
    await rig.published(live)
    assert (await asked(rig, "a", "b"))[0] == [1]


async def test_a_job_whose_input_was_given_up_or_changed_has_nothing_to_give(rig: Street) -> None:
    gone, changed = await rig.run("a"), await rig.run("b")
    rig.work.input_of(gone).unlink()
    rig.work.input_of(changed).write_bytes(lines("c"))
    assert (await asked(rig, "a", "b", "c"))[0] == [1, 2, 3]


async def test_an_answer_made_from_sources_is_not_copied(rig: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.run("a", "b")
    real = Segment.results

    def results(segment: Segment, job: int) -> Iterator[Any]:
        for line, outcome, record in real(segment, job):
            sources = b',"sources":[{"url":"http://192.0.2.1/"}]}' if line == 1 else b"}"
            yield line, outcome, record[:-1] + sources

    with monkeypatch.context() as changed:
        changed.setattr(Segment, "results", results)
        live = await rig.take("a", "b", skip_done=True)
        await until(lambda: not live.looking_back)
    assert rig.done(live) == {2}


async def test_earlier_answers_are_copied_together(rig: Street) -> None:
    await rig.run("a", "b", "c")
    live = await rig.take("c", "x", "a", "b")
    live.row.settings = JobSettings(skip_done=True)
    batches = [batch async for batch in Reuse(rig.work, rig.models).answers(live)]
    assert [[finished.line for finished in batch] for batch in batches] == [[3, 4, 1]]


async def test_a_disk_that_does_not_give_earlier_answers_costs_only_time(
    rig: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.run("a")

    def results(segment: Segment, job: int) -> Iterator[Any]:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as failing:
        failing.setattr(Segment, "results", results)
        live = await rig.take("a", skip_done=True)
        await until(lambda: not live.looking_back)
    await rig.answer(live, 1, text="new")
    assert (await rig.published(live))["copied"] == 0


async def test_a_job_cancelled_while_it_looks_back_asks_nothing(rig: Street) -> None:
    await rig.run("a")
    live = await rig.take("b", skip_done=True)
    await rig.engine.completion.cancellation.cancel(live)
    summary = await rig.published(live)
    assert (summary["cancelled"], rig.held()) == (1, [])
