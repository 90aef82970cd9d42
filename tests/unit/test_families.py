"""Which requests of a job are a family: those that share a long beginning of what is sent."""

from __future__ import annotations

import base64
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from settings_support import in_force

from obatchd.intake.indexing import DropReader
from obatchd.jobs.families import _REMEMBERED, WORTH_BYTES, Families, beginning
from obatchd.jobs.formats import repeated
from obatchd.jobs.formats.lines import index_line
from obatchd.jobs.formats.request import parse_request
from obatchd.jobs.model import Entry, Intent, written_line
from obatchd.jobs.store import IndexBatch, JobRow, Store
from obatchd.spool.layout import Layout

WORDS = ("the", "a", "report", "river", "city", "council", "water", "bridge", "winter", "market", "people")
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 40).decode()


def text(seed: Any, size: int = 5000) -> str:
    source = random.Random(repr(seed))
    return " ".join(source.choice(WORDS) for _ in range(size // 5))[:size]


def indexed(requests: Iterable[dict[str, Any]], first: int = 1) -> list[Entry]:
    entries = [index_line(line, 0, json.dumps(request).encode()) for line, request in enumerate(requests, first)]
    assert not [entry.refusal for entry in entries if entry.refusal]
    return entries


def families(requests: Iterable[dict[str, Any]], batch: int = 512) -> list[int | None]:
    """The family of each request."""
    entries, finder = indexed(requests), Families()
    return [e.family for at in range(0, len(entries), batch) for e in finder.assigned(entries[at : at + batch])]


def groups(found: Sequence[int | None], names: Sequence[str]) -> dict[str, set[int | None]]:
    """The families that the requests of each name got."""
    by_name: dict[str, set[int | None]] = defaultdict(set)
    for family, name in zip(found, names, strict=True):
        by_name[name].add(family)
    return by_name


def apart(found: Sequence[int | None], names: Sequence[str]) -> bool:
    """Whether just the requests of the same name are a family."""
    by_name = groups(found, names)
    met = [family for families in by_name.values() for family in families]
    return None not in met and len(met) == len(set(met)) == len(by_name)


def asked(documents: int, questions: int, size: int = 5000, before: str = "") -> tuple[list[dict[str, Any]], list[str]]:
    names = [str(document) for document in range(documents) for _ in range(questions)]
    prompts = [f"{before}{text(name, size)}\n\nQuestion {at}: what?" for at, name in enumerate(names)]
    return [{"prompt": prompt} for prompt in prompts], names


@pytest.mark.parametrize("batch", [512, 64, 7])
def test_questions_about_one_document_are_a_family_in_any_order(batch: int) -> None:
    requests, names = asked(30, 5)
    assert apart(families(requests, batch), names)
    together = list(zip(requests, names, strict=True))
    random.Random(1).shuffle(together)
    assert apart(families([request for request, _ in together], batch), [name for _, name in together])


def test_the_beginning_of_the_whole_job_makes_no_family() -> None:
    before = text("few shots", 9000)
    requests, names = asked(20, 3, before=before)
    assert apart(families(requests), names)
    requests[7] = {"prompt": "one line is about something else"}  # one that is different does not matter
    assert apart(families(requests)[:7], names[:7]) and families(requests)[7] is None
    alone = [{"prompt": before + f"Question {number}"} for number in range(60)]
    assert not any(families(alone)), "what all share is in every slot"


def test_short_beginnings_are_none() -> None:
    requests, _ = asked(20, 5, size=WORTH_BYTES // 2)
    assert not any(families(requests))
    alike = [{"prompt": "Translate: " + text(number, 3000)} for number in range(50)]
    assert len(set(families(alike))) == 50, "long prompts that share little are each of their own family"
    entries = indexed([{"prompt": "short", "data": "x" * 5000}])
    assert entries[0].beginning == b"", "what is not sent does not count"


def test_what_is_sent_counts_and_not_the_line() -> None:
    shared = text("shared")
    one = {"id": "a", "prompt": f"{shared} one", "note": text(1, 9000)}
    other = {"note": text(2, 9000), "prompt": f"{shared} two", "id": "b"}
    different = [{"id": f"x{number}", "prompt": text(number)} for number in range(9)]
    found = families([one, other, *different])
    assert found[0] == found[1] and len(set(found)) == 10
    chat = [{"role": "system", "content": shared}, {"role": "user", "content": "one"}]
    system = {"system": shared, "prompt": "x"}
    assert beginning(parse_request(json.dumps(system).encode()))
    found = families([{"messages": chat}, {"messages": [chat[0], {"role": "user", "content": "two"}]}, *different])
    assert found[0] == found[1]
    image = {"prompt": "What is it?", "images": [PIXEL]}
    found = families([image, {**image, "prompt": "Which colour?"}, *different])
    assert found[0] == found[1] is not None
    source = {"prompt": "What is it?", "urls": ["http://192.0.2.1/a"]}
    found = families([source, {**source, "prompt": "And why?"}, {**source, "urls": ["http://192.0.2.1/b"]}, *different])
    assert found[0] == found[1] != found[2]
    vectors = [{"input": [f"{shared} {number}"]} for number in range(3)]
    assert not any(families(vectors)), "texts for vectors have no slot"


def test_sections_of_a_document_are_families_where_they_are_most_of_it() -> None:
    names = [f"{document}/{section}" for document in range(6) for section in range(3) for _ in range(4)]
    prompts = [
        f"{text(name[0], 2000)}\n{text(name, 8000)}\nQuestion {at}?" for at, name in enumerate(names)
    ]  # fmt: skip
    assert apart(families([{"prompt": prompt} for prompt in prompts]), names)
    names = [str(document) for document in range(6) for _ in range(12)]
    prompts = [f"{text(name, 9000)}\n{text(at // 4, 1000)}\nQuestion {at}?" for at, name in enumerate(names)]
    assert apart(families([{"prompt": prompt} for prompt in prompts]), names)


def test_answers_to_one_prompt_are_a_family() -> None:
    entries = list(repeated(indexed({"prompt": text(number)} for number in range(4)), 5))
    found = [entry.family for entry in Families().assigned(entries)]
    assert apart(found, [str(written_line(entry.line)[0]) for entry in entries])


def test_memory_is_bounded_and_near_ones_are_found_for_ever() -> None:
    requests, names = asked(4000, 2, size=3000)
    finder = Families()
    entries = indexed(requests)
    found: list[int | None] = []
    for at in range(0, len(entries), 100):
        found += [entry.family for entry in finder.assigned(entries[at : at + 100])]
        assert len(finder._known) <= _REMEMBERED
    assert apart(found, names)


def test_half_characters_and_all_kinds_of_text_have_a_beginning() -> None:
    for odd in ("\ud800 half", "\0", "ä" * 5000, "🙂" * 5000):
        request = parse_request(json.dumps({"prompt": "x" * WORTH_BYTES}).encode())
        assert beginning(type(request)(prompt=odd * 2000)) != b""


def a_job(tmp_path: Path, requests: Iterable[dict[str, Any]], **dispatch: Any) -> tuple[Store, JobRow, DropReader]:
    layout = Layout(tmp_path)
    (tmp_path / "work").mkdir(exist_ok=True)
    settings = in_force(dispatch=dispatch)
    store = Store(tmp_path / "work", settings)
    store.state.accept([Intent("20260101-000001-abcd", b"x.jsonl", 7, 1, 1, 1000, "file", 0.0)])
    [row] = store.state.find(["20260101-000001-abcd"])
    directory = layout.job_dir(row.job)
    directory.mkdir(parents=True)
    (directory / "input").write_text("".join(json.dumps(request) + "\n" for request in requests))
    row.size = (directory / "input").stat().st_size
    return store, row, DropReader(row, layout, settings.value, lambda _: None)


def index(store: Store, reader: DropReader, size: int = 50) -> None:
    batch = IndexBatch(reader.row, [], False)
    while not batch.final:
        batch = reader.batch(size)
        store.write_index([batch])


def test_families_are_stored_with_the_requests_and_come_back_after_a_reading_that_was_cut_short(tmp_path: Path) -> None:
    requests, names = asked(30, 4)
    store, row, reader = a_job(tmp_path, requests)
    store.write_index([reader.batch(50)])
    reader = DropReader(row, Layout(tmp_path), in_force().value, lambda _: None)  # the daemon was killed
    index(store, reader)
    rows = store.of(row).pending(row.key, 0, 0, 1000)
    assert apart([entry.family for entry in rows], names)
    assert all(entry.read is not None and entry.length > 5000 for entry in rows)
    store.erase([row])
    assert store.of(row).pending(row.key, 0, 0, 1000) == []
    store.close()


@pytest.mark.parametrize("dispatch", [{"families": "off"}, {}])
def test_without_families_nothing_is_stored_of_them(tmp_path: Path, dispatch: dict[str, Any]) -> None:
    requests = asked(5, 5)[0] if dispatch else [{"prompt": f"short {number}"} for number in range(9)]
    store, row, reader = a_job(tmp_path, requests, **dispatch)
    index(store, reader)
    found = store.of(row).pending(row.key, 0, 0, 1000)
    assert len(found) == len(requests) and not any(entry.family for entry in found)
    assert store.of(row)._rows("SELECT 1 FROM sqlite_master WHERE name = 'families'") == []
    store.close()
