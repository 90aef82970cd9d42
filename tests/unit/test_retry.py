"""Retries: other settings for the same prompts, each under its old line, and jobs of jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from engine_support import records_of, until
from msgspec import UNSET
from operations_support import Desk, desk
from settings_support import reload

from obatchd.cli.obatchctl import main
from obatchd.client.control import ControlClient
from obatchd.control.auth import Caller
from obatchd.documents.jobs import JobDocument
from obatchd.errors import ConfigError, ControlError, NotFoundError
from obatchd.jobs.formats import with_changes
from obatchd.jobs.model import repeated_line
from obatchd.live.job import LiveJob
from obatchd.ollama import faults
from obatchd.ollama.faults import Fault
from obatchd.results.chain import Chain

ALICE, BOB = Caller(1000, False), Caller(1001, False)
NO = Fault(faults.REQUEST, "bad_request", "no")
CHAT: dict[str, Any] = {
    "model": "a",
    "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
}
BATCH = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {**CHAT, "max_tokens": 5}}
RESPONSES = {
    "input": "u", "instructions": "s", "max_output_tokens": 9, "text": {"format": {"type": "json_object"}, "kept": 1}
}  # fmt: skip


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with desk(monkeypatch, tmp_path) as made:
        yield made


async def failed(rig: Desk, *requests: str | dict[str, Any], lines: tuple[int, ...] = (), **settings: Any) -> LiveJob:
    """A job that is over, in which the requests of these lines, or all, have failed."""
    live = await rig.take(*requests, **settings)
    await rig.answer(live, *lines, fault=NO)
    await rig.answer(live)
    await rig.published(live)
    return live


async def again(rig: Desk, job: str, **changes: Any) -> LiveJob:
    return rig.live(await rig.operations.jobs.retry(ALICE, job, changes))


async def refused(rig: Desk, job: str, **changes: Any) -> str:
    with pytest.raises((ControlError, ConfigError)) as caught:
        await rig.operations.jobs.retry(ALICE, job, changes)
    return caught.value.message


# Changes.


@pytest.mark.parametrize(
    ("line", "changes", "left"),
    [
        ({"prompt": "p"}, {"model": "b"}, {"prompt": "p"}),
        ({"prompt": "p", "model": "a", "x": 1}, {"model": "b"}, {"prompt": "p", "model": "b", "x": 1}),
        ({"prompt": "p", "model": "a"}, {"think": False}, {"prompt": "p", "model": "a"}),
        ({"prompt": "p", "temperature": 1, "seed": 3}, {"options": {"temperature": 0}}, {"prompt": "p", "seed": 3}),
        (
            {"prompt": "p", "options": {"temperature": 1, "seed": 3}},
            {"options": {"temperature": 0}},
            {"prompt": "p", "options": {"seed": 3}},
        ),
        ({"prompt": "p", "options": {"num_ctx": 9}, "context_length": 8}, {"context_length": 5}, {"prompt": "p"}),
        ({"prompt": "p", "max_tokens": 9, "n_predict": 8}, {"max_response_tokens": 5}, {"prompt": "p"}),
        ({"prompt": "p", "options": {"num_predict": 9}}, {"max_response_tokens": 5}, {"prompt": "p"}),
        ({"prompt": "p", "max_tokens": 9}, {"options": {"num_predict": 5}}, {"prompt": "p"}),
        ({"prompt": "p", "system": "s"}, {"system_message": "t"}, {"prompt": "p"}),
        ({"prompt": "p", "response_format": {"type": "json_object"}}, {"format": ""}, {"prompt": "p"}),
        ({"prompt": "p", "reasoning_effort": "low"}, {"think": False}, {"prompt": "p"}),
        ({"prompt": "p", "reasoning": "because"}, {"think": False}, {"prompt": "p", "reasoning": "because"}),
        (CHAT, {"system_message": "t"}, {"model": "a", "messages": CHAT["messages"][1:]}),
        (
            BATCH,
            {"model": "b", "max_response_tokens": 7, "system_message": "t"},
            {**BATCH, "body": {"model": "b", "messages": CHAT["messages"][1:]}},
        ),
        (
            {**BATCH, "body": {**CHAT, "temperature": 2.5, "tool_choice": "auto"}},
            {"model": "b"},
            {**BATCH, "body": {**CHAT, "model": "b", "temperature": 2.5, "tool_choice": "auto"}},
        ),
        (
            RESPONSES,
            {"system_message": "t", "format": "", "max_response_tokens": 7},
            {"input": "u", "text": {"kept": 1}},
        ),
        ({"prompt": "p", "input_fields": {"model": 1}}, {"model": "b"}, {"prompt": "p", "input_fields": {"model": 1}}),
    ],
)
def test_settings_in_a_line_give_way_to_those_that_are_changed(
    line: dict[str, Any], changes: dict[str, Any], left: dict[str, Any]
) -> None:
    assert json.loads(with_changes(json.dumps(line).encode(), changes)) == left


def test_a_line_that_has_nothing_to_change_keeps_its_bytes() -> None:
    for raw in (b'{ "prompt": "p",  "x":1e400}', b"no JSON", b'{"prompt": "p", "model": null}'):
        assert with_changes(raw, {"model": "b", "options": {"seed": 1}}) == raw


async def test_changes_count_before_the_settings_of_job_and_requests(rig: Desk) -> None:
    job = await failed(
        rig, {"prompt": "a", "model": "small", "temperature": 1.5}, "b", max_response_tokens=5,
        options={"seed": 1, "num_predict": 6, "temperature": 1}, system_message="Be brief.",
    )  # fmt: skip
    live = await again(rig, job.row.job, model="large", max_response_tokens=9, temperature=0, think=False)
    frozen = live.frozen
    assert (frozen.model, frozen.max_response_tokens, frozen.think) == ("large", 9, False)
    assert frozen.options == {"seed": 1, "temperature": 0}
    assert frozen.system_message == "Be brief."
    await until(lambda: len(rig.held()) == 2)
    assert sorted(item.raw for item in rig.held()) == [b'{"prompt": "b"}', b'{"prompt":"a","model":"large"}']
    assert {lane.profile.model for lane in live.lanes.values()} == {"large"}
    await rig.answer(live)
    summary = await rig.published(live)
    assert summary["settings"]["model"] == "large" and summary["settings"]["options"] == {"seed": 1, "temperature": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modle": "x"}, "the changes: modle: no such job setting; did you mean model?"),
        ({"context_length": 0}, "context_length"),
        ({"template": "a", "sample": 3}, "cannot change sample and template; submit the drop again with that"),
        ({"lines_of": "x"}, "lines_of: no such job setting"),
    ],
)
async def test_a_change_that_cannot_be_is_refused_in_words(rig: Desk, changes: dict[str, Any], words: str) -> None:
    job = await failed(rig, "a")
    assert words in await refused(rig, job.row.job, **changes)
    assert not rig.work.jobs


async def test_a_retry_with_changes_outlives_a_restart_and_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(monkeypatch, tmp_path) as rig:
        job = await failed(rig, "a", "b", lines=(2,))
        document = await rig.operations.jobs.retry(ALICE, job.row.job, {"model": "large", "seed": 3})
    async with desk(monkeypatch, tmp_path, options={"top_k": 1}) as rig:
        [live] = rig.work.jobs.values()
        assert (live.row.job, live.row.owner, live.row.retry_of) == (document.job, 1000, job.row.job)
        assert (live.frozen.model, live.frozen.options) == ("large", {"seed": 3})
        await rig.answer(live)
        await rig.published(live)
        assert [record["line"] for record in records_of(live.outbox)] == [2]


# Lines.


async def test_a_request_keeps_its_line_and_so_its_name(rig: Desk) -> None:
    job = await failed(rig, "a", "b", {"id": "x", "prompt": "c"}, "d", "e", lines=(2, 3, 5))
    live = await again(rig, job.row.job)
    await rig.answer(live, 5, fault=NO)
    await rig.answer(live)
    await rig.published(live)
    assert [(r["line"], r["id"]) for r in records_of(live.outbox)] == [(2, "0000002"), (3, "x")]
    last = await again(rig, live.row.job)
    await rig.answer(last)
    await rig.published(last)
    assert [(r["line"], r["prompt"]) for r in records_of(last.outbox)] == [(5, "e")]


async def test_a_retry_of_a_batch_file_is_one_however_late_its_first_line(rig: Desk) -> None:
    lines = [{**BATCH, "custom_id": str(number), "body": {**CHAT, "model": "small"}} for number in range(3)]
    row = rig.accept(b"".join(json.dumps(line).encode() + b"\n" * 40_000 for line in lines))
    await rig.engine.intake.begin([row])
    job = rig.work.jobs[row.key]
    await rig.answer(job, 80_001, fault=NO)
    await rig.answer(job)
    await rig.published(job)
    live = await again(rig, row.job, model="large")
    await rig.answer(live)
    await rig.published(live)
    [line] = records_of(live.outbox)
    assert (line["id"], line["custom_id"]) == (f"batch_req_{live.row.job}-80001", "2")
    assert line["response"]["body"]["model"] == "large"


async def test_a_retry_of_a_job_that_failed_as_a_whole_is_no_second_drop_of_it(
    rig: Desk,
) -> None:
    job = await failed(rig, "a")
    reload(rig.work.settings, "inbox.dedupe", "reject")
    live = await again(rig, job.row.job)
    assert live.row.notes == []


# Jobs of jobs.


async def test_what_a_retry_answered_is_not_asked_again(rig: Desk) -> None:
    job = await failed(rig, "a", "b", "c", lines=(1, 3))
    first = await again(rig, job.row.job)
    reason = f"job {first.row.job} is still trying again what failed in {job.row.job}; retry it when that is over"
    assert await refused(rig, job.row.job) == reason
    await rig.answer(first, 3, fault=NO)
    await rig.answer(first)
    await rig.published(first)
    second = await again(rig, job.row.job, model="large")
    assert rig.left(second) == {3}
    await rig.answer(second)
    await rig.published(second)
    assert "every failed request" in await refused(rig, job.row.job)
    assert "every failed request" not in await refused(rig, second.row.job)
    third = await again(rig, first.row.job)  # of it alone nothing is known but its own failure
    assert rig.left(third) == {3}


async def test_lines_that_cannot_be_retried_are_named(rig: Desk) -> None:
    good, bad = b'{"prompt": "a"}\n', b'{"id": "x"}\nno JSON\n'
    row = rig.accept(good + bad)
    await rig.engine.intake.begin([row])
    job = rig.work.jobs[row.key]
    await rig.answer(job, fault=NO)
    await rig.published(job)
    first = await again(rig, row.job)
    await rig.answer(first)
    await rig.published(first)
    mend = "2 cannot be retried: mend lines 2, 3 of the drop and submit them"
    assert (
        await refused(rig, row.job) == f"{mend}; every other failed request of job {row.job} was answered by a retry"
        " of it"
    )
    row = rig.accept(good * 20 + bad * 6)
    await rig.engine.intake.begin([row])
    job = rig.work.jobs[row.key]
    await rig.answer(job)
    await rig.published(job)
    mend = "12 cannot be retried: mend lines 21, 22, 23, 24, 25, 26, 27, 28, 29, 30 and 2 more of the drop and submit"
    assert await refused(rig, row.job) == f"job {row.job} has no failed request that could be tried again; {mend} them"


async def test_answers_that_need_a_look_are_asked_for_again(rig: Desk) -> None:
    job = await rig.take("a", "b", "c")
    await rig.answer(job, 1, cut=True)
    await rig.answer(job, 2, fault=NO)
    await rig.answer(job, 3)
    await rig.published(job)
    retry = rig.operations.jobs.retry
    with pytest.raises(ControlError, match="has no answer with a value that is not in its prompt"):
        await retry(ALICE, job.row.job, {}, "ungrounded")
    with pytest.raises(ConfigError, match="only must be failed, truncated or ungrounded"):
        await retry(ALICE, job.row.job, {}, "cut")
    first = rig.live(await retry(ALICE, job.row.job, {"max_response_tokens": 9}, "truncated"))
    assert rig.left(first) == {1}
    await rig.answer(first, text="longer", cut=True)
    await rig.published(first)
    second = rig.live(await retry(ALICE, job.row.job, {"max_response_tokens": 99}, "truncated"))
    await rig.answer(second, text="whole")
    await rig.published(second)
    with pytest.raises(ControlError, match="every such request"):
        await retry(ALICE, job.row.job, {}, "truncated")
    assert rig.left(rig.live(await retry(ALICE, job.row.job))) == {2}  # failures are tried again as ever
    chain = Chain(job.outbox, [(one.row.job, one.outbox) for one in (first, second)])
    told = [(row.record.get("response"), row.record["attempt_job"]) for row in chain.rows()]
    assert told[0] == ("whole", second.row.job) and told[2] == ("yes", job.row.job)


async def test_two_retries_at_the_same_moment_ask_the_same_once(rig: Desk) -> None:
    job = await failed(rig, "a")
    retry = rig.operations.jobs.retry
    made = await asyncio.gather(*(retry(ALICE, job.row.job) for _ in range(2)), return_exceptions=True)
    [document] = [one for one in made if isinstance(one, JobDocument)]
    [error] = [one for one in made if isinstance(one, ControlError)]
    assert (error.code, job.row.job in error.message) == ("job_running", True)
    assert rig.operations.jobs.one(ALICE, job.row.job).retries == [document.job]


async def test_a_retry_is_its_owners_whoever_asked_for_it(rig: Desk) -> None:
    job = await failed(rig, "a")
    with pytest.raises(NotFoundError):
        await rig.operations.jobs.retry(BOB, job.row.job, {"model": "large"})
    document = await rig.operations.jobs.retry(Caller(0, True), job.row.job, {"model": "large"})
    assert document.owner == 1000
    assert rig.operations.jobs.one(ALICE, job.row.job).retries == [document.job]
    with pytest.raises(NotFoundError):
        rig.operations.jobs.one(BOB, document.job)


async def test_a_job_names_its_retries_to_those_who_may_see_it(rig: Desk) -> None:
    job = await failed(rig, "a", "b")
    other = await failed(rig, "a")
    one = rig.operations.jobs.one
    assert one(ALICE, job.row.job).retries is UNSET
    made = []
    for _ in range(2):
        live = await again(rig, made[-1] if made else job.row.job)
        await rig.answer(live, fault=NO)
        await rig.published(live)
        made.append(live.row.job)
    document = one(ALICE, job.row.job)
    assert isinstance(document, JobDocument) and document.retries == made
    assert one(ALICE, made[0]).retries == made[1:]
    assert one(ALICE, other.row.job).retries is UNSET
    assert all(listed.retries is UNSET for listed in rig.operations.jobs.all(ALICE, None, 9))


# The command.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any] | None]:
    """The bodies that obatchctl sent; the daemon's answer is a job that is over when it is looked at."""
    bodies: list[dict[str, Any] | None] = []
    job = {"job": "second", "retry_of": "first", "name": "q", "state": "running", "notes": [], "outbox": str(tmp_path)}

    def post(_: ControlClient, *path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        assert path == ("jobs", "fir", "retry")
        bodies.append(body)
        return job

    def get(_: ControlClient, *path: str) -> dict[str, Any]:
        assert path == ("jobs", "second")
        return {**job, "state": "done", "requests": 35, "succeeded": 33, "failed": 2, "cancelled": 0, "expired": 0}

    monkeypatch.setattr(ControlClient, "post", post)
    monkeypatch.setattr(ControlClient, "get", get)
    return bodies


def obatchctl(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["retry", "fir", *arguments], catch_exceptions=False)


def test_the_command_says_what_is_changed(asked: list[dict[str, Any] | None]) -> None:
    assert obatchctl().output == "second tries again what failed in first\n"
    assert asked.pop() is None
    run = obatchctl(
        "--model", "large", "--context-length", "9000", "--set", "think=false", "--set", "temperature=0",
        "--set", 'options.stop=["a"]', "--set", "system_message=Be brief.", "--set", "format=json",
    )  # fmt: skip
    assert run.output == (
        "second tries again what failed in first, with model = large, context_length = 9000, think = false, "
        'temperature = 0, options.stop = ["a"], system_message = Be brief., format = json\n'
    )
    assert asked == [
        {
            "settings": {
                "model": "large", "context_length": 9000, "think": False, "temperature": 0,
                "options": {"stop": ["a"]}, "system_message": "Be brief.", "format": "json",
            }
        }
    ]  # fmt: skip


def test_the_command_asks_for_cut_answers_again(asked: list[dict[str, Any] | None]) -> None:
    run = obatchctl("--only", "truncated", "--max-response-tokens", "9")
    assert run.output == "second tries again what was cut at the token limit in first, with max_response_tokens = 9\n"
    assert asked == [{"settings": {"max_response_tokens": 9}, "only": "truncated"}]


def test_the_command_waits_copies_and_names_what_has_all(asked: list[dict[str, Any] | None], tmp_path: Path) -> None:
    run = obatchctl("--wait")
    assert run.exit_code == 1  # two have failed again
    assert run.output == (
        "second tries again what failed in first\n"
        f"second  done  33 succeeded, 2 failed  {tmp_path}\n"
        "With the answers before:  obatchctl results first\n"
    )
    (tmp_path / "summary.json").write_text("{}")
    run = obatchctl("--output-dir", str(tmp_path.parent / "copies"), "--json")
    document = json.loads(run.output)
    assert (document["succeeded"], document["state"]) == (33, "done")
    assert (Path(document["copied_to"]) / "summary.json").exists()


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("temperature", "temperature is no KEY=VALUE; write temperature=0"),
        ("=3", "=3 is no KEY=VALUE"),
        ("options=3", "write each option as options.temperature=0"),
        ("model.x=3", "model has another value already"),
    ],
)
def test_an_assignment_that_is_none_is_wrong_usage(
    asked: list[dict[str, Any] | None], assignment: str, words: str
) -> None:
    run = obatchctl("--model", "m", "--set", assignment)
    assert (run.exit_code, words in run.output, asked) == (2, True, [])


async def test_the_answers_of_a_repeated_prompt_are_retried_by_their_numbers(rig: Desk) -> None:
    job = await rig.take("a", {"id": "x", "prompt": "b"}, "c", repeat=3)
    bad = {repeated_line(2, 2), repeated_line(3, 1), repeated_line(3, 3)}
    await rig.answer(job, *bad, fault=NO)
    await rig.answer(job)
    await rig.published(job)
    live = await again(rig, job.row.job, model="large")
    assert rig.left(live) == bad
    await rig.answer(live, repeated_line(3, 1), fault=NO)
    await rig.answer(live)
    await rig.published(live)
    chain = Chain(job.outbox, [(live.row.job, live.outbox)])
    rows = [(row.name, row.record["attempt_job"] == live.row.job, row.succeeded) for row in chain.rows()]
    assert len(rows) == 9 and rows[4] == ("x#2", True, True)
    assert sum(not succeeded for *_, succeeded in rows) == 1
    last = await again(rig, job.row.job)
    assert rig.left(last) == {repeated_line(3, 1)}
    await rig.answer(last)
    await rig.published(last)
