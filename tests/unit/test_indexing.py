"""Reading a claimed drop into the store: in chunks, again after a crash, and when somebody changes it meanwhile."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from settings_support import in_force

from obatchd.delivery.late import late_note
from obatchd.errors import DropRefused
from obatchd.intake import indexing
from obatchd.intake.digest import content_digest
from obatchd.intake.feeder import read_requests
from obatchd.intake.indexing import DropReader
from obatchd.intake.intake import flush_unpacked
from obatchd.intake.submitted import SubmittedSettings
from obatchd.jobs.formats import lines, request_file
from obatchd.jobs.model import Entry, Intent, default_id, repeated_line
from obatchd.jobs.store import IndexBatch, JobRow, Store
from obatchd.settings.job import JobSettings
from obatchd.settings.settings import Settings
from obatchd.spool.layout import Layout

Accept = Callable[..., JobRow]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.open(tmp_path / "spool")


@pytest.fixture
def store(layout: Layout) -> Iterator[Store]:
    store = Store(layout.work, in_force())
    yield store
    store.close()


@pytest.fixture
def accept(layout: Layout, store: Store) -> Accept:
    """An accepted drop: of one file's content, or of a folder's files."""

    def accepting(name: str, content: bytes | dict[str, bytes]) -> JobRow:
        job = f"job-{len(store.state.jobs())}"
        target = layout.job_dir(job) / "input"
        target.parent.mkdir()
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            target.mkdir()
            for file, inside in content.items():
                (target / file).write_bytes(inside)
        kind, size = ("file", len(content)) if isinstance(content, bytes) else ("folder", 0)
        store.state.accept([Intent(job, name.encode(), 1000, 1, 2, size, kind, 0.0)])
        [row] = store.state.find([job])
        return row

    return accepting


def reading(
    row: JobRow, layout: Layout, check_space: Callable[[int], None] = lambda _: None, **inbox: Any
) -> DropReader:
    return DropReader(row, layout, Settings.model_validate({"inbox": inbox}), check_space)


def prompts(count: int, begin: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"r{number}", "prompt": f"prompt {number}"} for number in range(begin, begin + count)]


def jsonl(requests: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def array_gz(requests: list[dict[str, Any]]) -> bytes:
    return gzip.compress(json.dumps(requests).encode())


def index(store: Store, what: DropReader, size: int) -> list[IndexBatch]:
    """Read to the end in chunks of ``size``."""
    batches = [what.batch(size)]
    store.write_index(batches)
    while not batches[-1].final:
        batches.append(what.batch(size))
        store.write_index(batches[-1:])
    return batches


def pending(store: Store, row: JobRow) -> list[Entry]:
    return store.of(row).pending(row.key, 0, 0, 10_000)


def input_of(layout: Layout, row: JobRow) -> Path:
    return layout.job_dir(row.job) / "input"


CONTENTS: list[tuple[str, bytes | dict[str, bytes]]] = [
    ("d.jsonl", jsonl(prompts(50))),
    ("d.json.gz", array_gz(prompts(50))),
    ("d", {f"{number:02}.json": json.dumps({"prompt": f"prompt {number}"}).encode() for number in range(50)}),
]


@pytest.mark.parametrize(("name", "content"), CONTENTS)
def test_chunks_are_whole_and_in_order(
    store: Store, layout: Layout, accept: Accept, name: str, content: bytes | dict[str, bytes]
) -> None:
    row = accept(name, content)
    batches = index(store, reading(row, layout), 16)
    assert [len(batch.entries) for batch in batches] == [16, 16, 16, 2]
    rows = pending(store, row)
    found, changed = read_requests(request_file(input_of(layout, row)), rows, {})
    assert [json.loads(request.raw)["prompt"] for request in found] == [f"prompt {number}" for number in range(50)]
    assert not changed


@pytest.mark.parametrize("name", ["d.jsonl", "d.json.gz", "d", "batch.jsonl"])
def test_families_are_looked_for_unless_they_are_off(
    store: Store, layout: Layout, accept: Accept, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = [{"prompt": f"{about * 300} {number}"} for about in ("this one ", "that one ") for number in range(3)]
    if name == "d":
        content: bytes | dict[str, bytes] = {
            f"{number}.json": json.dumps(one).encode() for number, one in enumerate(asked)
        }
    elif name == "batch.jsonl":
        bodies = [{"model": "m", "messages": [{"role": "user", "content": one["prompt"]}]} for one in asked]
        content = jsonl([{"custom_id": f"{n}", "url": "/v1/chat/completions", "body": b} for n, b in enumerate(bodies)])
    else:
        content = array_gz(asked) if name.endswith("gz") else jsonl(asked)
    row = accept(name, content)
    index(store, reading(row, layout), 16)
    families = [entry.family for entry in pending(store, row)]
    assert len(set(families)) == 2 and None not in families and len(families) == 6
    monkeypatch.setattr(lines, "beginning", lambda request: pytest.fail("nobody asked for it"))
    row = accept(name, content)
    off = Settings.model_validate({"dispatch": {"families": "off"}})
    index(store, DropReader(row, layout, off, lambda _: None), 16)
    assert [entry.family for entry in pending(store, row)] == [None] * 6


def test_a_job_may_say_its_encoding_and_that_lines_are_prompts(store: Store, layout: Layout, accept: Accept) -> None:
    row = accept("e.txt", "schön\ngrün\n".encode("cp1252"))
    SubmittedSettings(JobSettings(encoding="cp1252", lines=True)).write(layout.job_dir(row.job))
    reader = reading(row, layout)
    reader.prepare(store)
    index(store, reader, 16)
    found, _ = read_requests(request_file(input_of(layout, row)), pending(store, row), {})
    assert [json.loads(request.raw)["prompt"] for request in found] == ["schön", "grün"]


def test_lines_in_another_encoding_are_run_as_utf8(store: Store, layout: Layout, accept: Accept) -> None:
    row = accept("e.jsonl", '{"prompt": "schön"}\r\n{"prompt": "grün"}\r\n'.encode("utf-16"))
    index(store, reading(row, layout), 1)
    found, _ = read_requests(request_file(input_of(layout, row)), pending(store, row), {})
    assert [json.loads(request.raw)["prompt"] for request in found] == ["schön", "grün"]


@pytest.mark.parametrize(("name", "content"), CONTENTS)
def test_a_reading_that_starts_over_adds_nothing_twice(
    store: Store, layout: Layout, accept: Accept, name: str, content: bytes | dict[str, bytes]
) -> None:
    row = accept(name, content)
    interrupted = reading(row, layout)
    store.write_index([interrupted.batch(16)])
    flush_unpacked([interrupted])
    first = pending(store, row)
    index(store, reading(row, layout), 20)
    rows = pending(store, row)
    assert rows[:16] == first
    assert [found.line for found in rows] == list(range(1, 51))


def test_small_requests_are_at_hand_and_large_ones_stay_in_the_input(
    store: Store, layout: Layout, accept: Accept
) -> None:
    row = accept("d.jsonl", jsonl(prompts(3)))
    small = reading(row, layout)
    batch = small.batch(10)
    [indexed] = store.write_index([batch])
    assert [request.line for request in small.chunk(batch, indexed).pending[0]] == [1, 2, 3]
    row = accept("e.jsonl", jsonl([{"prompt": "x" * 20_000}]))
    large = reading(row, layout)
    batch = large.batch(10)
    [indexed] = store.write_index([batch])
    assert large.chunk(batch, indexed).pending == {}


# Somebody writes on.


def test_bytes_appended_after_acceptance_are_reported_and_not_run(store: Store, layout: Layout, accept: Accept) -> None:
    row = accept("d.jsonl", jsonl(prompts(5)))
    late = jsonl(prompts(2, begin=5))
    with input_of(layout, row).open("ab") as file:
        file.write(late)
    index(store, reading(row, layout), 100)
    assert [found.id for found in pending(store, row)] == [f"r{number}" for number in range(5)]
    [note] = late_note(row, layout)
    assert note.startswith(f"{len(late)} bytes came after")


def test_nothing_is_noted_of_a_drop_left_alone(layout: Layout, accept: Accept) -> None:
    assert late_note(accept("d.jsonl", jsonl(prompts(5))), layout) == []
    assert late_note(accept("d", {"a.json": b'{"prompt": "x"}'}), layout) == []


def test_requests_whose_bytes_changed_are_found_out(store: Store, layout: Layout, accept: Accept) -> None:
    row = accept("d.jsonl", jsonl(prompts(5)))
    index(store, reading(row, layout), 100)
    path = input_of(layout, row)
    path.write_bytes(path.read_bytes().replace(b"prompt 2", b"PROMPT 2")[: -len(jsonl(prompts(1)))])
    found, changed = read_requests(request_file(path), pending(store, row), {})
    assert [request.line for request in found] == [1, 2, 4]
    assert [request.line for request in changed] == [3, 5]


@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_a_drop_changed_beyond_recognition_ends_with_what_was_read(
    store: Store, layout: Layout, accept: Accept, name: str
) -> None:
    requests = prompts(50)
    row = accept(name, jsonl(requests) if name == "d.jsonl" else json.dumps(requests).encode())
    store.write_index([reading(row, layout).batch(16)])
    input_of(layout, row).write_bytes(b"")
    again = reading(row, layout)
    with pytest.raises(DropRefused) as refused:
        again.batch(16)
    rest = again.broken_off(store, refused.value.message)
    [indexed] = store.write_index([rest])
    assert (indexed.refused, rest.final) == (1, True)
    [result] = [json.loads(record) for _, _, record in store.results(row)]
    assert (result["line"], result["code"]) == (17, "input_changed")
    assert "is empty" in result["message"]
    assert len(pending(store, row)) == 16


def test_what_is_packed_stays_so_when_the_input_changes(store: Store, layout: Layout, accept: Accept) -> None:
    """Requests already indexed lie in the unpacked file; a new look at the input must not send anybody elsewhere."""
    row = accept("d.json", json.dumps(prompts(50)).encode())
    store.write_index([reading(row, layout).batch(16)])
    input_of(layout, row).write_bytes(jsonl(prompts(50)))
    index(store, reading(row, layout), 16)
    path = request_file(input_of(layout, row))
    assert path.name == "requests.jsonl"
    found, changed = read_requests(path, pending(store, row), {})
    assert [json.loads(request.raw)["id"] for request in found] == [f"r{number}" for number in range(50)]
    assert not changed


# Before the first request.


def test_a_full_disk_is_not_blamed_on_the_drop(store: Store, layout: Layout, accept: Accept) -> None:
    def full(size_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    row = accept("d.json.gz", array_gz(prompts(50)))
    with pytest.raises(OSError, match="No space"):
        reading(row, layout, full).batch(16)
    index(store, reading(row, layout), 100)
    assert len(pending(store, row)) == 50


def test_a_bad_line_refuses_the_whole_where_that_is_wanted(store: Store, layout: Layout, accept: Accept) -> None:
    bad = jsonl(prompts(2)) + b"{bad\n" + jsonl(prompts(1, begin=2))
    with pytest.raises(DropRefused, match="line 3: ") as refused:
        reading(accept("d.jsonl", bad), layout, on_invalid="fail_file").prepare(store)
    assert refused.value.code == "invalid_lines"
    row = accept("e.jsonl", jsonl(prompts(2)))
    good = reading(row, layout, on_invalid="fail_file")
    good.prepare(store)
    index(store, good, 100)
    assert len(pending(store, row)) == 2


def test_the_same_prompts_with_the_same_settings_are_noted_or_refused(
    store: Store, layout: Layout, accept: Accept
) -> None:
    first = accept("d.jsonl", jsonl(prompts(2)))
    store.state.update(first.key, **reading(first, layout).prepare(store))
    second = accept("other name.jsonl", jsonl(prompts(2)))
    assert reading(second, layout).prepare(store)["notes"] == [
        f"duplicate_of {first.job}: an earlier job of yours had exactly these prompts and settings; submit --skip-done "
        "copies the answers that there are"
    ]
    with pytest.raises(DropRefused, match=first.job) as refused:
        reading(second, layout, dedupe="reject").prepare(store)
    assert refused.value.code == "duplicate"


def test_a_job_that_answered_nothing_has_no_duplicate(store: Store, layout: Layout, accept: Accept) -> None:
    """Before, --skip-done was advised, which found no answer to copy."""
    first = accept("d.jsonl", jsonl(prompts(2)))
    store.state.update(first.key, **reading(first, layout).prepare(store))
    again = accept("again.jsonl", jsonl(prompts(2)))
    for succeeded, notes in ((0, 0), (1, 1)):
        store.state.update(first.key, summary={"succeeded": succeeded, "failed": 2 - succeeded})
        assert len(reading(again, layout).prepare(store).get("notes", ())) == notes


@pytest.mark.parametrize(
    "own",
    [{"model": "another"}, {"template": "{prompt}!"}, {"options": {"seed": 1}}, {"system_message": "Be brief."},
     {"text_column": "id"}, {"think": False}, {"context_length": 9000}],
    ids=lambda own: next(iter(own)),
)  # fmt: skip
def test_the_same_prompts_asked_in_another_way_are_no_duplicate(
    store: Store, layout: Layout, accept: Accept, own: dict[str, Any]
) -> None:
    first, second, third = (accept(f"{name}.jsonl", jsonl(prompts(2))) for name in "abc")
    for row, settings in ((first, {}), (second, own), (third, own | {"priority": "low"})):
        SubmittedSettings(JobSettings(**settings)).write(layout.job_dir(row.job))
    store.state.update(first.key, **reading(first, layout, dedupe="reject").prepare(store))
    changes = reading(second, layout, dedupe="reject").prepare(store)
    assert changes["notes"] == []
    store.state.update(second.key, **changes)
    [note] = reading(third, layout).prepare(store)["notes"]
    assert second.job in note and first.job not in note


def test_nobody_learns_that_somebody_else_asked_the_same(store: Store, layout: Layout, accept: Accept) -> None:
    first, second = (accept(f"{name}.jsonl", jsonl(prompts(2))) for name in "ab")
    store.state.update(first.key, **reading(first, layout).prepare(store), owner=first.owner + 1)
    for dedupe in ("allow", "reject"):
        assert reading(second, layout, dedupe=dedupe).prepare(store)["notes"] == []


def test_submitted_settings_win_over_those_of_the_folder(store: Store, layout: Layout, accept: Accept) -> None:
    toml = b'model = "folder"\nsystem_message = "s"\n[ollama_instances]\n"h:1" = 0\n'
    row = accept("d", {"a.json": b'{"prompt": "x"}', "config.toml": toml})
    SubmittedSettings(JobSettings(model="submitted"), ["a note"], "old-job").write(layout.job_dir(row.job))
    changes = reading(row, layout).prepare(store)
    assert changes["settings"] == JobSettings(model="submitted", system_message="s")
    assert changes["retry_of"] == "old-job"
    assert changes["notes"][-1] == "a note"
    assert any("ollama_instances" in note for note in changes["notes"])


def test_a_drop_that_is_read_again_keeps_its_notes_and_tells_each_once(
    store: Store, layout: Layout, accept: Accept
) -> None:
    row = accept("d", {"a.json": b'{"prompt": "x"}'})
    row.notes = ["of an upgrade"]
    SubmittedSettings(JobSettings(), ["a note"]).write(layout.job_dir(row.job))
    for _ in range(2):
        assert reading(row, layout).prepare(store)["notes"] == ["of an upgrade", "a note"]


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_a_reading_that_starts_over_in_the_middle_of_a_prompts_answers_goes_on_there(
    store: Store, layout: Layout, accept: Accept, chunk: int
) -> None:
    row = accept("d.jsonl", jsonl(prompts(5)))
    row.settings = JobSettings(repeat=3)
    store.write_index([reading(row, layout).batch(chunk)])
    index(store, reading(row, layout), 4)
    keys = [repeated_line(line, number) for line in range(1, 6) for number in range(1, 4)]
    entries = pending(store, row)
    assert [entry.line for entry in entries] == keys
    assert [entry.id for entry in entries] == [f"r{line}#{number}" for line in range(5) for number in (1, 2, 3)]
    [lane] = store.of(row).lanes(row.key)
    assert lane.requests == 15
    found, changed = read_requests(request_file(input_of(layout, row)), entries, {})
    assert not changed
    assert [json.loads(request.raw)["prompt"] for request in found] == [f"prompt {n // 3}" for n in range(15)]


def test_a_repeated_reading_that_cannot_go_on_says_so_behind_its_last_line(
    store: Store, layout: Layout, accept: Accept
) -> None:
    row = accept("d.jsonl", jsonl(prompts(5)))
    row.settings = JobSettings(repeat=3)
    reader = reading(row, layout)
    store.write_index([reader.batch(4)])
    [rest] = reader.broken_off(store, "it is gone").entries
    assert (rest.line, default_id(rest.line)) == (repeated_line(3, 0), "0000003")


def test_a_retry_brings_the_settings_of_its_first_job(store: Store, layout: Layout, accept: Accept) -> None:
    row = accept("d", {"a.json": b'{"prompt": "x"}'})
    first = msgspec.structs.replace(row.defaults, system_message="Be old.")
    SubmittedSettings(JobSettings(), [], "old-job", first).write(layout.job_dir(row.job))
    changes = reading(row, layout).prepare(store)
    store.state.update(row.key, **changes)
    assert [found.frozen.system_message for found in store.state.find([row.job])] == ["Be old."]


@pytest.mark.parametrize("toml", [b"model = ", b'mdoel = "x"'])
def test_wrong_settings_of_a_folder_refuse_it(store: Store, layout: Layout, accept: Accept, toml: bytes) -> None:
    row = accept("d", {"a.json": b'{"prompt": "x"}', "job.toml": toml})
    with pytest.raises(DropRefused, match=r"job\.toml") as refused:
        reading(row, layout).prepare(store)
    assert refused.value.code == "job_settings"


# The digest.


def test_the_digest_of_a_folder_follows_names_and_contents(tmp_path: Path) -> None:
    def digest(**files: bytes) -> str:
        folder = tmp_path / f"f{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return content_digest(folder)

    assert digest(a=b"1", b=b"2") == digest(b=b"2", a=b"1")
    assert len({digest(a=b"1", b=b"2"), digest(a=b"1"), digest(a=b"2", b=b"1"), digest(a=b"1", c=b"2")}) == 4


def test_the_digest_hangs_on_nothing_a_folder_may_hold(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    os.mkfifo(tmp_path / "f" / "pipe")
    (tmp_path / "f" / "link").symlink_to("/dev/zero")
    (tmp_path / "f" / "closed").write_bytes(b"x")
    (tmp_path / "f" / "closed").chmod(0)
    assert len(content_digest(tmp_path / "f")) == 64


@pytest.mark.parametrize("read_before", [0, 2])
def test_a_defect_of_a_reader_costs_its_drop_alone(
    monkeypatch: pytest.MonkeyPatch, layout: Layout, store: Store, accept: Accept, read_before: int
) -> None:
    real = indexing.read_entries

    def broken(*arguments: Any, **keywords: Any) -> Iterator[Entry]:
        yield from islice(real(*arguments, **keywords), read_before)
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(indexing, "read_entries", broken)
    row = accept("drop.jsonl", jsonl(prompts(5)))
    begun = reading(row, layout)
    begun.prepare(store)
    if read_before:
        assert len(begun.batch(read_before).entries) == read_before
    with pytest.raises(DropRefused, match="ZeroDivisionError") as caught:
        begun.batch(10)
    assert caught.value.code == "reader_defect"


# A sample.


def test_a_sample_is_of_good_requests_and_the_same_whenever_it_is_read(
    store: Store, layout: Layout, accept: Accept
) -> None:
    row = accept("d.jsonl", jsonl(prompts(30)) + b"{bad\n")
    SubmittedSettings(JobSettings(sample=5)).write(layout.job_dir(row.job))
    first = reading(row, layout)
    changes = first.prepare(store)
    assert (changes["settings"].sample, changes["settings"].sample_of) == (5, 30)
    assert changes["notes"] == ["sample: 5 of 30 requests, chosen at random; 1 more cannot be run"]
    assert "digest" not in changes and first.finish_digest(store) == {}  # it is no earlier drop of the same content
    chosen = [entry.line for entry in first.batch(100).entries]
    assert len(chosen) == 5 and chosen == sorted(chosen)
    store.state.update(row.key, **changes)
    [again] = store.state.find([row.job])
    assert [entry.line for entry in reading(again, layout).batch(100).entries] == chosen


def test_a_sample_larger_than_its_drop_is_the_drop(store: Store, layout: Layout, accept: Accept) -> None:
    row = accept("d.jsonl", jsonl(prompts(3)))
    SubmittedSettings(JobSettings(sample=5)).write(layout.job_dir(row.job))
    whole = reading(row, layout)
    assert whole.prepare(store)["notes"] == ["sample: 3 of 3 requests, chosen at random"]
    assert [entry.line for entry in whole.batch(100).entries] == [1, 2, 3]


# What is found out before.


def test_a_batch_file_of_the_other_api_is_marked_as_one(store: Store, layout: Layout, accept: Accept) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": "x"}]}}  # fmt: skip
    assert reading(accept("d.jsonl", jsonl([line])), layout).prepare(store)["settings"].openai_batch
    assert not reading(accept("e.jsonl", jsonl(prompts(1))), layout).prepare(store)["settings"].openai_batch
    row = accept("f.jsonl", jsonl([line]))
    SubmittedSettings(JobSettings(template="{{custom_id}}")).write(layout.job_dir(row.job))
    assert not reading(row, layout).prepare(store)["settings"].openai_batch  # its lines are records of the owner's own


def test_of_many_bad_lines_five_are_told(store: Store, layout: Layout, accept: Accept) -> None:
    row = accept("d.jsonl", b"{bad\n" * 7)
    with pytest.raises(DropRefused, match=r"and 2 more") as refused:
        reading(row, layout, on_invalid="fail_file").prepare(store)
    assert refused.value.message.count("line ") == 5


def test_a_defect_in_the_settings_of_a_drop_costs_it_alone(
    monkeypatch: pytest.MonkeyPatch, store: Store, layout: Layout, accept: Accept
) -> None:
    def broken(*arguments: Any) -> Any:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(indexing, "content_digest", broken)
    with pytest.raises(DropRefused, match="ZeroDivisionError"):
        reading(accept("d.jsonl", jsonl(prompts(1))), layout).prepare(store)


def test_refused_requests_are_not_at_hand(store: Store, layout: Layout, accept: Accept) -> None:
    row = accept("d.jsonl", jsonl(prompts(1)) + b"{bad\n" + jsonl(prompts(1, begin=1)))
    read = reading(row, layout)
    batch = read.batch(10)
    [indexed] = store.write_index([batch])
    chunk = read.chunk(batch, indexed)
    assert [request.line for request in chunk.pending[0]] == [1, 3]
    assert (list(chunk.pending), chunk.indexed.refused, chunk.final) == ([0], 1, True)


def test_a_large_drop_begins_with_few_requests_and_a_small_one_with_more(layout: Layout, accept: Accept) -> None:
    small, large = accept("s.jsonl", jsonl(prompts(400))), accept("l.jsonl", jsonl(prompts(9000)))
    assert len(reading(small, layout).first_batch().entries) == 256
    assert len(reading(large, layout).first_batch().entries) == 64
