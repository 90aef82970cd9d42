"""Prompts that are answered more than once: ``repeat`` of a job, and ``n`` of a request."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from engine_support import Street, records_of, street, until
from operations_support import desk

from obatchd.control.auth import Caller
from obatchd.dispatch.protocol import JobContext
from obatchd.dispatch.records import Found
from obatchd.dispatch.worker.several import seeds_of, several
from obatchd.intake.reuse import fingerprint
from obatchd.jobs.formats import Request, parse_request, repeated, with_repeats
from obatchd.jobs.formats.request import parse_batch_request
from obatchd.jobs.model import (
    LAST_REPEATED_LINE,
    MOST_REPEATS,
    Entry,
    RequestRefused,
    default_id,
    id_at,
    next_line,
    place_of,
    repeated_line,
    written_line,
)
from obatchd.ollama import faults
from obatchd.ollama.client import Answer
from obatchd.ollama.faults import Fault
from obatchd.results.rows import ResultSet
from obatchd.settings.job import parse_job_settings
from obatchd.spool.layout import file_stem

ALICE = Caller(1000, False)
NO = Fault(faults.REQUEST, "context_exceeded", "too long")
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Street]:
    async with street(monkeypatch, tmp_path) as made:
        yield made


def every(times: int, *written: int) -> list[int]:
    return [repeated_line(line, number) for line in written for number in range(1, times + 1)]


# The line of a repeated request.


@pytest.mark.parametrize("line", [1, 2, 255, LAST_REPEATED_LINE])
@pytest.mark.parametrize("number", [0, 1, 2, MOST_REPEATS])
def test_the_line_of_a_repeated_request_says_what_it_is(line: int, number: int) -> None:
    key = repeated_line(line, number)
    assert written_line(key) == (line, number)
    assert written_line(line) == (line, 0)
    assert line < key < repeated_line(line, MOST_REPEATS) + 1 <= next_line(key) < 2**32
    assert written_line(next_line(key)) == (line + 1, 0)
    assert (next_line(line), place_of(line)) == (line + 1, {"line": line})


def test_ids_and_names_of_files_have_the_number_of_the_answer() -> None:
    key = repeated_line(5, 2)
    assert (id_at(key, "x"), id_at(key, None), id_at(5, "x"), default_id(5)) == ("x#2", "0000005#2", "x", "0000005")
    assert place_of(key) == {"line": 5, "repeat": 2}
    assert file_stem("x#2", key) == "x#2"
    assert file_stem("0000005#2", key) == "0000005#2"
    assert file_stem("a/b#2", key) == "a_b.5#2"  # an altered name gets its line, as ever
    assert file_stem("x#2", 5) == "x_2.5"  # the author's own


def test_a_prompt_beyond_the_last_line_that_can_be_repeated_says_so() -> None:
    entries = list(repeated([Entry(LAST_REPEATED_LINE, 0, 1, 0), Entry(LAST_REPEATED_LINE + 1, 1, 1, 0)], 2))
    assert [written_line(entry.line) for entry in entries][:2] == [(LAST_REPEATED_LINE, 1), (LAST_REPEATED_LINE, 2)]
    refusal = entries[2].refusal
    assert refusal is not None
    assert refusal.code == "too_many_requests"
    assert refusal.message == "line 16777215: prompts behind line 16777214 cannot be repeated; they are not run"


def test_how_often_is_a_setting_of_a_job() -> None:
    assert parse_job_settings({"repeat": 3}, "job.toml")[0].repeat == 3
    for wrong in (0, MOST_REPEATS + 1, "often"):
        with pytest.raises(Exception, match="repeat"):
            parse_job_settings({"repeat": wrong}, "job.toml")


# Whole jobs.


async def test_each_prompt_is_answered_as_often_as_its_job_says(rig: Street) -> None:
    live = await rig.take({"id": "x", "prompt": "a", "note": 1}, "b", repeat=3)
    assert live.requests == 6
    assert rig.left(live) == set(every(3, 1, 2))
    await rig.answer(live)
    summary = await rig.published(live)
    assert (summary["requests"], summary["succeeded"], summary["settings"]["repeat"]) == (6, 6, 3)
    records = records_of(live.outbox)
    assert [record["id"] for record in records] == ["x#1", "x#2", "x#3", "0000002#1", "0000002#2", "0000002#3"]
    assert [(record["line"], record["repeat"]) for record in records] == [(n, k) for n in (1, 2) for k in (1, 2, 3)]
    assert {record.get("input", {}).get("note") for record in records} == {1, None}
    stems = {path.name for path in (live.outbox / "responses").iterdir()}
    assert {"x#1.json", "x#3.txt", "0000002#2.json"} <= stems
    assert [row.name for row in ResultSet(live.outbox).rows()] == [record["id"] for record in records]


async def test_a_line_that_cannot_be_run_fails_once_and_an_id_that_exists_is_refused(rig: Street) -> None:
    drop = b'{"id": "x", "prompt": "a"}\n{broken\n{"id": "x", "prompt": "b"}\n{"id": "x#1", "prompt": "c"}\n'
    row = rig.accept(drop, repeat=2)
    await rig.engine.intake.begin([row])
    live = rig.work.jobs[row.key]
    await rig.answer(live)
    summary = await rig.published(live)
    assert (summary["requests"], summary["succeeded"], summary["failed"]) == (7, 4, 3)
    assert [record["id"] for record in records_of(live.outbox)] == ["x#1", "x#2", "x#1#1", "x#1#2"]
    errors = [json.loads(line) for line in (live.outbox / "errors.jsonl").read_bytes().splitlines()]
    assert [(error["id"], error["code"], error["line"], error.get("repeat")) for error in errors] == [
        ("0000002", "bad_json", 2, None), ("x#1", "duplicate_id", 3, 1), ("x#2", "duplicate_id", 3, 2)
    ]  # fmt: skip
    assert errors[1]["message"].startswith("line 3: the id 'x#1' was used by line 1 already")


async def test_what_is_not_answered_when_the_daemon_ends_is_asked_once_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with street(monkeypatch, tmp_path) as first:
        live = await first.take("a", "b", repeat=4)
        await first.answer(live, repeated_line(1, 1), repeated_line(1, 3))
        job = live.row.job
    async with street(monkeypatch, tmp_path) as second:
        [live] = second.work.jobs.values()
        assert (live.row.job, live.requests, live.finished) == (job, 8, 2)
        await second.answer(live, text="later")
        assert (await second.published(live))["succeeded"] == 8
        said = {record["id"]: record["response"] for record in records_of(live.outbox)}
    assert Counter(said.values()) == {"yes": 2, "later": 6}
    assert [name for name, text in said.items() if text == "yes"] == ["0000001#1", "0000001#3"]


async def test_a_cancelled_job_ends_all_answers_that_are_left(rig: Street) -> None:
    live = await rig.take({"id": "x", "prompt": "a"}, repeat=3)
    await rig.answer(live, repeated_line(1, 2))
    await rig.engine.completion.cancellation.cancel(live)
    assert (await rig.published(live))["cancelled"] == 2
    errors = [json.loads(line) for line in (live.outbox / "errors.jsonl").read_bytes().splitlines()]
    assert [(error["id"], error["line"], error["repeat"], error["prompt"]) for error in errors] == [
        ("x#1", 1, 1, "a"), ("x#3", 1, 3, "a")
    ]  # fmt: skip


async def test_of_a_sample_each_prompt_is_answered_as_often(rig: Street) -> None:
    live = await rig.take(*map(str, range(10)), sample=2, repeat=3)
    assert (live.requests, live.row.settings.sample_of) == (6, 30)
    assert live.row.notes == ["sample: 2 of 10 requests, chosen at random, each answered 3 times"]


async def test_the_limit_of_a_drop_counts_every_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with street(monkeypatch, tmp_path, inbox={"max_requests": 5}) as rig:
        live = await rig.take("a", "b", "c", repeat=2)
        await rig.answer(live)
        summary = await rig.published(live)
    assert (summary["succeeded"], summary["failed"]) == (4, 1)
    assert "more than max_requests (5) requests, when each prompt is answered 2 times" in json.dumps(summary)


async def test_only_the_answers_that_failed_are_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(monkeypatch, tmp_path) as rig:
        live = await rig.take({"id": "x", "prompt": "a"}, {"id": "y", "prompt": "b"}, repeat=3)
        await rig.answer(live, *every(1, 1), *every(3, 2))
        await rig.answer(live, repeated_line(1, 2), repeated_line(1, 3), fault=NO)
        await rig.published(live)
        document = await rig.operations.jobs.retry(ALICE, live.row.job)
        assert document.requests == 2
        again = rig.work.jobs[max(rig.work.jobs)]
        await rig.answer(again, repeated_line(1, 2))
        await rig.answer(again, repeated_line(1, 3), fault=NO)
        await rig.published(again)
        [record] = records_of(again.outbox)
        assert (record["id"], record["line"], record["repeat"]) == ("x#2", 1, 2)
        assert "input" not in record
        await rig.operations.jobs.retry(ALICE, again.row.job)
        last = rig.work.jobs[max(rig.work.jobs)]
        assert rig.left(last) == {repeated_line(1, 3)}


async def test_only_the_answers_that_failed_are_asked_for_again_after_the_index_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(monkeypatch, tmp_path) as rig:
        live = await rig.take({"id": "x", "prompt": "a"}, repeat=3)
        await rig.answer(live, repeated_line(1, 1), repeated_line(1, 3))
        await rig.answer(live, repeated_line(1, 2), fault=NO)
        await rig.published(live)
    for file in (tmp_path / "spool" / "work").glob("state.db*"):
        file.unlink()
    async with desk(monkeypatch, tmp_path) as rig:
        await rig.operations.jobs.retry(Caller(0, True), live.row.job)
        [again] = rig.work.jobs.values()
        assert rig.left(again) == {repeated_line(1, 2)}


async def test_answers_of_earlier_repeats_are_copied_by_their_number(rig: Street) -> None:
    first = await rig.run({"id": "x", "prompt": "a"}, repeat=2)
    live = await rig.take({"id": "y", "prompt": "a"}, repeat=3, skip_done=True)
    await until(lambda: not live.looking_back)
    assert rig.left(live) == {repeated_line(1, 3)}
    await rig.answer(live)
    summary = await rig.published(live)
    assert (summary["succeeded"], summary["copied"]) == (3, 2)
    copied = records_of(live.outbox)[1]
    assert (copied["id"], copied["line"], copied["repeat"]) == ("y#2", 1, 2)
    assert copied["copied_from"] == f"{first.job}/1#2"


def test_an_answer_with_a_seed_is_the_same_as_any_with_that_seed() -> None:
    def key(number: int = 0, **options: Any) -> bytes | None:
        return fingerprint(json.dumps({"prompt": "a", "options": options}).encode(), "c", "d", number=number)

    assert key(3, seed=5) == key(seed=7) == key(1, seed=7) != key(seed=5)
    assert len({key(), key(1), key(2)}) == 3


async def test_lines_of_a_batch_file_are_repeated_too(rig: Street) -> None:
    line = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": BODY}
    live = await rig.take(line, repeat=2)
    await rig.answer(live)
    await rig.published(live)
    written = records_of(live.outbox)
    assert [one["custom_id"] for one in written] == ["x#1", "x#2"]
    assert len({one["id"] for one in written}) == 2
    read = [row.record for row in ResultSet(live.outbox).rows()]
    assert [(row["id"], row["line"], row["repeat"]) for row in read] == [("x#1", 1, 1), ("x#2", 1, 2)]


# Seeds.


def seeds(raw: dict[str, Any], label: str = "x", number: int = 0, **options: Any) -> list[int]:
    return seeds_of(parse_request(json.dumps(raw).encode()), JobContext(1, "job", "", options, 10), label, number)


def test_a_given_seed_counts_up() -> None:
    chat = {**BODY, "seed": 7}
    assert seeds(chat, number=1) == [7]
    assert seeds(chat, number=3) == [9]
    assert seeds({**chat, "n": 3}) == [7, 8, 9]
    assert seeds({**chat, "n": 3}, number=2) == [10, 11, 12]
    assert seeds(BODY, number=2, seed=1) == [2]  # of the job


def test_without_one_seeds_are_drawn_and_a_job_that_goes_on_draws_the_same() -> None:
    drawn = [seeds(BODY, f"x#{number}", number)[0] for number in range(1, 51)]
    assert drawn == [seeds(BODY, f"x#{number}", number)[0] for number in range(1, 51)]
    assert len(set(drawn)) == 50
    assert all(0 <= seed < 2**31 for seed in drawn)
    assert seeds(BODY, number=1, seed=-1) == seeds(BODY, number=1)  # to Ollama a negative one is none


class Slots:
    """Lends three slots."""

    def __init__(self) -> None:
        self.free = 3
        self.wanted = False

    def borrow(self) -> bool:
        had, self.free = self.free > 0, max(0, self.free - 1)
        return had

    def give_back(self) -> None:
        self.free += 1


async def test_slots_come_back_where_the_first_answer_fails_before_the_others_begin() -> None:
    async def ask(request: Request) -> Found:
        return Answer(fault=NO), {}

    slots = Slots()
    request = parse_request(json.dumps({**BODY, "n": 8}).encode())
    answer, extra = await several(ask, request, range(8), slots)
    assert answer.fault is not None
    assert (answer.fault.message, extra) == ("answer 4 of 8: too long", {"seed": 3})
    await asyncio.sleep(0)
    assert slots.free == 3


# What a request asks for.


def batch(**body: Any) -> bytes:
    url = body.pop("url", "/v1/chat/completions")
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": {**BODY, **body}}).encode()


def test_a_batch_line_may_ask_for_up_to_sixteen_answers() -> None:
    assert [parse_batch_request(batch(n=n)).n for n in (None, 1, 2, 16)] == [1, 1, 2, 16]
    assert parse_batch_request(batch(url="/v1/completions", prompt="p", n=2)).n == 2
    for wrong in (17, -1, 1.5, "many", True, [2]):
        with pytest.raises(
            RequestRefused, match="n is not supported: it must be a whole number from 1 to 16"
        ) as refused:
            parse_batch_request(batch(n=wrong))
        assert refused.value.code == "unsupported_parameter"
    with pytest.raises(RequestRefused, match="n is not supported: it must be 1 for /v1/embeddings"):
        parse_batch_request(batch(url="/v1/embeddings", input="a", n=2))


def test_a_plain_body_may_ask_for_several_answers_and_data_stays_data() -> None:
    def read(**raw: Any) -> Any:
        return parse_request(json.dumps(raw).encode())

    assert (read(**BODY, n=3).n, read(**BODY, n=3).notes, read(**BODY, n=3).input) == (3, [], {})
    completion = read(model="m", prompt="p", n=3)
    assert (completion.n, completion.input) == (3, {})
    assert completion.notes[0].startswith('n is taken for a setting: there are 3 answers, in "choices"')
    assert (read(prompt="p", n=3).n, list(read(prompt="p", n=3).input)) == (1, ["n"])
    assert (read(model="m", prompt="p", n=300).n, list(read(model="m", prompt="p", n=300).input)) == (1, ["n"])
    assert read(**BODY, n=17).notes == ["n is left out: it must be a whole number from 1 to 16"]


def test_a_retry_says_in_its_line_which_answers_it_asks_for() -> None:
    raw = with_repeats(b' {"id": "x", "prompt": "a"}', [2, 5])
    request = parse_request(raw)
    assert (request.id, request.prompt, request.again, request.input) == ("x", "a", (2, 5), {})
    assert parse_batch_request(with_repeats(batch(), [3])).again == (3,)
    for again, numbers in (((2, 50), [2]), ((50,), [1, 2, 3]), ((), [1, 2, 3])):  # an author may have such a field
        entries = repeated([Entry(1, 0, 1, 0, again=again)], 3)
        assert [written_line(entry.line)[1] for entry in entries] == numbers
    theirs = parse_request(b'{"prompt": "a", "input_repeats": "often"}')
    assert (theirs.again, list(theirs.input)) == ((), ["input_repeats"])
