"""Fields that may be meant otherwise than they are taken are told to the job's owner, once for the whole drop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from settings_support import in_force

from obatchd.intake.indexing import DropReader
from obatchd.jobs.formats import FieldNotes, RecordRules, field_notes, read_entries
from obatchd.jobs.formats.request import parse_request
from obatchd.jobs.model import Intent
from obatchd.jobs.store import JobRow, Store
from obatchd.settings.settings import Settings
from obatchd.spool.layout import Layout

LIMITS = in_force().value.inbox


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def notes(directory: Path, content: bytes, name: str = "drop.jsonl", rules: RecordRules | None = None) -> list[str]:
    """The notes on a drop of this content; all of its lines are requests."""
    path = directory / "input"
    path.write_bytes(content)
    found = FieldNotes()
    entries = [*read_entries(path, name, LIMITS, rules=rules or RecordRules(), field_notes=found)]
    assert [entry.refusal for entry in entries if entry.refusal] == []
    (directory / "requests.jsonl").unlink(missing_ok=True)
    return found.notes()


DATA = "obatchd takes these fields for data, because it knows no setting of that name: "


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("modle", "model"), ("Model", "model"), ("temprature", "temperature"), ("max_token", "max_tokens"),
        ("maxTokens", "max_tokens"), ("max-response-tokens", "max_response_tokens"), ("sytem", "system"),
        ("options ", "options"), ("contextlength", "context_length"), ("priorty", "priority"), ("formt", "format"),
        ("url", "urls"), ("imges", "images"),
    ],
)  # fmt: skip
def test_a_known_field_that_is_misspelt_is_told_with_the_one_that_was_meant(
    tmp_path: Path, field: str, meant: str
) -> None:
    lines = [{"id": str(n), "prompt": "p", field: "x"} for n in range(40)]
    assert notes(tmp_path, jsonl({"prompt": "p"}, *lines)) == [
        f'{DATA}"{field}" in 40 requests (did you mean "{meant}"?)'
    ]


@pytest.mark.parametrize(
    "field",
    ["mrn", "note", "mode", "form", "temp", "label", "context", "n", "raw", "text", "title", "source", "answer",
     "echo", "date", "user", "seeding", "state", "input", "output", "role", "parameters", "num_tokens", "top", "modal",
     "temperature_c", "system_id", "format_id", "message", "formatted"],
)  # fmt: skip
def test_data_is_taken_for_data_without_a_word(tmp_path: Path, field: str) -> None:
    value = "user" if field == "role" else "x"
    assert notes(tmp_path, jsonl(*({"prompt": "p", field: value} for _ in range(3)))) == []


def test_one_note_of_a_kind_counts_all_fields(tmp_path: Path) -> None:
    lines = [{"prompt": "p", "modle": "m", "temprature": 1}] * 2 + [{"prompt": "p", "modle": "m", "model": "m"}]
    assert notes(tmp_path, jsonl(*lines)) == [
        f'{DATA}"modle" in 3 requests (did you mean "model"?), "temprature" in 2 requests (did you mean "temperature"?)'
    ]
    assert notes(tmp_path, jsonl({"prompt": "p", "modle": "m"})) == [
        f'{DATA}"modle" in 1 request (did you mean "model"?)'
    ]


def test_a_known_setting_beside_the_prompt_is_obeyed_and_told(tmp_path: Path) -> None:
    line = {"prompt": "p", "max_tokens": 5, "temperature": 0, "response_format": "json", "reasoning_effort": "low"}
    request = parse_request(json.dumps(line).encode())
    assert (request.max_response_tokens, request.options["temperature"], request.format) == (5, 0, "json")
    [note] = notes(tmp_path, jsonl(*[line] * 40, {"prompt": "p", "max_tokens": 5}))
    assert note == (
        'obatchd takes these fields beside the prompt for settings: "max_tokens" in 41 requests, "reasoning_effort" in '
        '40 requests, "response_format" in 40 requests, "temperature" in 40 requests; if they are data, submit with '
        "--text-column or --template"
    )


def test_a_number_of_answers_beside_model_and_prompt_is_told(tmp_path: Path) -> None:
    [note] = notes(tmp_path, jsonl(*({"model": "m", "prompt": "p", "n": number} for number in range(1, 21))))
    assert note.startswith('obatchd takes these fields beside the prompt for settings: "n" in 15 requests;')


def test_what_is_not_obeyed_is_not_called_so(tmp_path: Path) -> None:
    """A field that is null, or whose value shows that it is data."""
    for line in (
        {"prompt": "p", "max_tokens": None}, {"prompt": "p", "temperature": None},
        {"prompt": "p", "parameters": {"speed": 3}}, {"prompt": "p", "reasoning": "because"},
    ):  # fmt: skip
        assert notes(tmp_path, jsonl(line)) == []
    [note] = notes(tmp_path, jsonl({"prompt": "p", "parameters": {"seed": 3}}, {"prompt": "p", "parameters": "data"}))
    assert '"parameters" in 1 request;' in note


def test_a_field_that_is_data_in_one_line_is_still_obeyed_in_the_next() -> None:
    found = FieldNotes()
    for _ in range(2):
        assert parse_request(b'{"prompt": "p", "parameters": "data", "mrn": 1}', found).options == {}
        assert parse_request(b'{"prompt": "p", "parameters": {"seed": 3}, "mrn": 1}', found).options == {"seed": 3}
        assert parse_request(b'{"prompt": "p", "mrn": 1, "modle": 1}', found).model is None
        assert parse_request(b'{"prompt": "p", "mrn": 1, "model": "m"}', found).model == "m"


def test_documented_fields_and_bodies_of_calls_need_no_note(tmp_path: Path) -> None:
    ours = {"id": "a", "prompt": "p", "model": "m", "options": {"seed": 1}, "system": "s", "priority": "low",
            "context_length": 9000, "max_response_tokens": 5, "format": "json", "think": False,
            "keep_alive": 5}  # fmt: skip
    chat = {"messages": [{"role": "user", "content": "p"}], "temperature": 0, "max_tokens": 5}
    batch = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat | {"user": "me"}}
    for line in (ours, chat, batch):
        assert notes(tmp_path, jsonl(line)) == []


def test_options_that_ollama_does_not_know_are_told(tmp_path: Path) -> None:
    lines = [{"prompt": "p", "options": {"temprature": 1, "pace": 2, "model": "m"}}] * 3
    assert notes(tmp_path, jsonl(*lines)) == [
        'Ollama is not known to have these options, which are sent to it all the same: "model" in 3 requests ("model" '
        'stands beside the prompt, not among the options), "pace" in 3 requests, "temprature" in 3 requests (did you '
        'mean "temperature"?)'
    ]


def test_misspelt_fields_of_bodies_are_told(tmp_path: Path) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "p"}], "temprature": 1, "anything": 2,
            "options": {"sed": 1}}  # fmt: skip
    lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(2)]
    assert notes(tmp_path, jsonl(*lines)) == [
        'Ollama is not known to have these options, which are sent to it all the same: "sed" in 2 requests (did you '
        'mean "seed"?)',
        'obatchd leaves these fields of the body out, because it knows no setting of that name: "temprature" in 2 '
        'requests (did you mean "temperature"?)',
    ]


def test_settings_beside_the_body_of_a_line_are_not_read_and_told(tmp_path: Path) -> None:
    line = {"custom_id": "a", "body": {"model": "m", "messages": [{"role": "user", "content": "p"}]}}
    for outside in ({"url": "/v1/chat/completions", "method": "POST"}, {}):
        assert notes(tmp_path, jsonl(line | outside, line | outside | {"custom_id": "b", "note": "mine"})) == []
        wrong = line | outside | {"temperature": 0, "model": "other"}
        assert notes(tmp_path, jsonl(wrong, wrong | {"custom_id": "b"})) == [
            'obatchd does not read these fields beside the body of a line; put them into it: "model" in 2 requests, '
            '"temperature" in 2 requests'
        ]


@pytest.mark.parametrize(
    ("name", "content", "rules"),
    [
        ("t.csv", b"prompt,modle,max_tokens\np,x,5\n", RecordRules()),
        ("t.jsonl", jsonl({"note": "p", "modle": "x", "max_tokens": 5}), RecordRules(template="{note}")),
        ("t.jsonl", jsonl({"prompt": "p", "modle": "x", "max_tokens": 5}), RecordRules(text_column="prompt")),
        ("t.json", json.dumps([{"prompt": "p", "modle": 1, "seed": 5}]).encode(), RecordRules(id_column="modle")),
    ],
)
def test_columns_of_tables_and_records_are_data(tmp_path: Path, name: str, content: bytes, rules: RecordRules) -> None:
    assert notes(tmp_path, content, name, rules) == []


def test_every_shape_of_requests_is_looked_at(tmp_path: Path) -> None:
    line = {"prompt": "p", "modle": "m"}
    one = [f'{DATA}"modle" in 1 request (did you mean "model"?)']
    assert notes(tmp_path, json.dumps(line).encode(), "a.json") == one
    assert notes(tmp_path, json.dumps([line]).encode(), "a.json") == one
    assert notes(tmp_path, json.dumps({"requests": [line]}).encode(), "a.json") == one
    folder = tmp_path / "folder"
    (folder / "input").mkdir(parents=True)
    (folder / "input" / "a.json").write_text(json.dumps(line))
    found = FieldNotes()
    assert len([*read_entries(folder / "input", "f", LIMITS, field_notes=found)]) == 1
    assert found.notes() == one


def test_a_drop_with_a_new_name_in_every_line_is_not_held_up(tmp_path: Path) -> None:
    found = FieldNotes()
    for number in range(20_000):
        parse_request(f'{{"prompt": "p", "temperatur{number}": 1}}'.encode(), found)
        parse_request(f'{{"prompt": "p", "options": {{"o{number}": 1}}}}'.encode(), found)
    data, options = found.notes()
    assert len(data) < 1000 and len(options) < 1000
    assert " more" in data and " more" in options


def test_a_new_name_in_every_body_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes are asked for with each chunk of a drop."""
    compared: list[str] = []
    real = field_notes._nearest

    def nearest(name: str, names: tuple[str, ...]) -> str:
        compared.append(name)
        return real(name, names)

    monkeypatch.setattr(field_notes, "_nearest", nearest)
    found, body = FieldNotes(), {"model": "m", "messages": [{"role": "user", "content": "p"}], "temprature": 1}
    for number in range(2500):
        parse_request(json.dumps({"custom_id": "a", "body": {**body, f"f{number}": 1}}).encode(), found)
        if number % 500 == 0:
            found.notes()
    [note] = found.notes()
    assert '"temprature" in 2,500 requests' in note
    assert len(compared) == len(set(compared)) <= field_notes._LIMIT


# In a job.


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    layout = Layout.open(tmp_path / "spool")
    made = Store(layout.work, in_force())
    yield made
    made.close()


def accepted(store: Store, layout: Layout, content: bytes) -> JobRow:
    store.state.accept([Intent("job", b"drop.jsonl", 1000, 1, 1, len(content), "file", 0.0)])
    layout.job_dir("job").mkdir()
    (layout.job_dir("job") / "input").write_bytes(content)
    [row] = store.state.find(["job"])
    return row


def test_a_small_drop_has_its_notes_at_once_and_each_once_when_it_is_read_again(store: Store, tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "spool")
    row = accepted(store, layout, jsonl(*[{"prompt": "p", "modle": "m"}] * 3))
    for _ in range(2):  # a crash came before its first chunk was in the index
        reader = DropReader(row, layout, Settings(), lambda size_bytes: None)
        changes = reader.prepare(store)
        assert reader.first_batch().final
        assert changes["notes"] == row.notes == [f'{DATA}"modle" in 3 requests (did you mean "model"?)']


def test_a_large_drop_shows_what_is_read_and_keeps_the_notes_on_the_whole(store: Store, tmp_path: Path) -> None:
    layout = Layout.open(tmp_path / "spool")
    content = jsonl(*[{"prompt": "p" * 1000, "modle": "m"}] * 300)
    row = accepted(store, layout, content)

    def read(reader: DropReader) -> list[str]:
        assert not reader.first_batch().final
        assert row.notes == [f'{DATA}"modle" in 64 requests (did you mean "model"?)']
        assert reader.batch(512).final
        return list(reader.finish_digest(store)["notes"])

    whole = [f'{DATA}"modle" in 300 requests (did you mean "model"?)']
    reader = DropReader(row, layout, Settings(), lambda size_bytes: None)
    changes = reader.prepare(store)
    assert read(reader) == row.notes == whole
    store.state.update(row.key, **{**changes, "notes": []})  # killed before the end was in the index
    [row] = store.state.find(["job"])
    assert read(DropReader(row, layout, Settings(), lambda size_bytes: None)) == whole
