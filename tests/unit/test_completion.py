"""From durable results to the publication of a job, however many gather on the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from engine_support import Street, street, until

from obatchd.delivery import completion as module
from obatchd.dispatch.events import Finished
from obatchd.ollama import faults
from obatchd.ollama.faults import Fault


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    async with street(monkeypatch, tmp_path) as made:
        yield made


async def test_results_are_counted_as_they_become_durable_and_the_last_one_ends_the_job(rig: Street) -> None:
    live = await rig.take("a", "b", "c")
    await rig.answer(live, 3)
    await rig.answer(live, 1, fault=Fault(faults.REQUEST, "bad_request", "no"))
    assert (live.counts["succeeded"], live.counts["failed"], live.publishing) == (1, 1, False)
    assert live.tokens_per_s() > 0
    assert live.failures == {"bad_request": (1, "no")}
    await rig.answer(live, 2)
    summary = await rig.published(live)
    assert (summary["succeeded"], summary["failed"], summary["response_tokens"]) == (2, 1, 10)
    whole = (live.outbox / "errors.jsonl").read_bytes()
    failed = [json.loads(line) for line in whole.splitlines()]
    assert whole.count(b'"prompt":') == 1
    assert [(record["line"], record["prompt"], record["code"]) for record in failed] == [(1, "a", "bad_request")]


async def test_an_attempt_that_failed_is_remembered_over_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as rig:
        live = await rig.take("a")
        await rig.answer(live, 1, fault=Fault(faults.SERVER, "server_error", "it failed"))
        [attempt] = rig.work.store.of(live.row).attempts(live.key)
        assert (attempt.line, attempt.attempt, attempt.fault) == (1, 1, faults.SERVER)
    async with street(monkeypatch, tmp_path) as rig:
        [again] = rig.work.jobs.values()
        await until(rig.held)
        assert [(item.attempt, item.servers) for item in rig.held()] == [(2, ["gpu0"])]
        await rig.answer(again)
        assert (await rig.published(again))["succeeded"] == 1


async def test_a_model_that_a_server_misses_is_made_sure_of_again(rig: Street) -> None:
    live = await rig.take("a")
    await rig.answer(live, 1, fault=Fault(faults.LOAD, "model_not_found", "no such model"))
    assert rig.models.forgotten == ["small"]


async def test_every_answer_has_files_of_its_own_where_that_is_wanted(rig: Street) -> None:
    live = await rig.take({"id": "x", "prompt": "a"}, "b")
    await rig.answer(live, text="because")
    await rig.published(live)
    files = {path.name: path.read_text() for path in (live.outbox / "responses").iterdir()}
    assert sorted(files) == ["0000002.json", "0000002.txt", "x.json", "x.txt"]
    assert files["x.txt"] == "because\n" and json.loads(files["x.json"])["response"] == "because"


async def test_a_result_of_a_job_that_is_gone_counts_for_nobody(rig: Street) -> None:
    live = await rig.take("a")
    rig.engine.completion.committed([Finished(99, 1, 0, True, b"{}", 1.0)])
    assert live.finished == 0 and list(rig.work.jobs) == [live.key]


async def test_nothing_more_is_offered_while_results_gather_faster_than_they_are_written(
    rig: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BACKLOG_LIMIT", 4)
    live = await rig.take(*"abcdefghij")
    completion, holds = rig.engine.completion, rig.work.holds
    for line in range(1, 6):
        completion.finished(Finished(live.key, line, 0, True, b'{"line":%d}' % line, 1.0))
    completion.watch_backlog()
    assert "backlog" in holds.reasons
    monkeypatch.setattr(module, "_BACKLOG_LIMIT", 9)
    completion.watch_backlog()
    assert "backlog" in holds.reasons  # until half of it is written
    monkeypatch.setattr(module, "_BACKLOG_LIMIT", 4)
    await rig.engine.committer.settle(5)
    assert live.counts["succeeded"] == 5
    completion.watch_backlog()
    assert "backlog" not in holds.reasons
    for line in (6, 7, 8):
        completion.finished(Finished(live.key, line, 0, True, b'{"line":%d}' % line, 1.0))
    completion.watch_backlog()
    assert "backlog" not in holds.reasons  # many, and not too many
