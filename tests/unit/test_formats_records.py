"""Formats people have: tables, texts, and records that become prompts by a template or a column."""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from obatchd.errors import ConfigError, DropRefused
from obatchd.jobs.formats import Format, RecordRules, Request, parse_request, read_entries, recognise, request_file
from obatchd.jobs.formats.request import unused_fields
from obatchd.jobs.model import Entry
from obatchd.prompts.template import template_parts, template_problem
from obatchd.settings.job import parse_job_settings
from obatchd.settings.tables.spool import InboxSettings

NOTE = RecordRules(text_column="note")


class Reading:
    """A drop's entries, and what became of each line."""

    def __init__(self, path: Path, name: str, rules: RecordRules, limits: InboxSettings) -> None:
        self.entries = list(read_entries(path, name, limits, rules=rules))
        self._content = request_file(path).read_bytes()
        self.requests = [parse_request(self.raw(e)) for e in self.entries if e.refusal is None]
        self.refused = {e.line: e.refusal for e in self.entries if e.refusal is not None}
        self.codes = {line: refusal.code for line, refusal in self.refused.items()}

    def raw(self, entry: Entry) -> bytes:
        return self._content[entry.offset : entry.offset + entry.length]

    def passed_on(self, line: int) -> dict[str, Any]:
        """What comes back with the result of a line, refused or not."""
        [entry] = [e for e in self.entries if e.line == line]
        return plain(unused_fields(self.raw(entry)))

    @property
    def prompts(self) -> list[str]:
        return [request.prompt for request in self.requests]

    @property
    def ids(self) -> list[str | None]:
        return [request.id for request in self.requests]


def plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: json.loads(bytes(value)) for name, value in fields.items()}


def given(request: Request) -> dict[str, Any]:
    return plain(request.input)


Read = Callable[..., Reading]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def reading(name: str, content: bytes | dict[str, bytes], rules: RecordRules = NOTE, **limits: Any) -> Reading:
        path = tmp_path / "input"
        if isinstance(content, dict):
            path.mkdir()
            for file, data in content.items():
                (path / file).write_bytes(data)
        else:
            path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return Reading(path, name, rules, InboxSettings(**limits))

    return reading


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


# Tables.


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.csv", ";"), ("t.tsv", "\t"), ("t.csv", "|")])
def test_every_row_is_a_request_with_all_its_cells(read: Read, name: str, delimiter: str, packed: str) -> None:
    rows = [
        ["mrn", "model", "note"],
        ["7", "Ford", 'He said "no",\nthen; left\t|'],
        ["8", "", "plain"],
        ["9", "Ümlaut", "a\r\nb"],
    ]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    reading = read(name + packed, b"\xef\xbb\xbf" + text.getvalue().encode(), RecordRules(None, "note", "mrn"))
    assert reading.prompts == [row[2] for row in rows[1:]]
    assert reading.ids == ["7", "8", "9"]
    assert [given(request) for request in reading.requests] == [
        dict(zip(rows[0], row, strict=True)) for row in rows[1:]
    ]
    assert not reading.refused
    assert [request.model for request in reading.requests] == [None] * 3  # a column is data, whatever it is called


def test_a_row_is_numbered_by_the_line_it_begins_on(read: Read) -> None:
    reading = read("t.csv", b'a,note\n1,"x\ny"\n\n2,z\n')
    assert [entry.line for entry in reading.entries] == [2, 5]


def test_a_bad_row_fails_alone_and_its_cells_come_back(read: Read) -> None:
    content = b'id,note\n1,good\n2,too,many\n3,"never closed\n4,good too\n5,"closed" and more\n6,\n7\n8,\xff\n1,again\n'
    reading = read("t.csv", content)
    assert reading.prompts == ["good", "good too", "again"]
    assert reading.codes == {
        3: "bad_row", 4: "bad_row", 6: "bad_row", 7: "missing_prompt", 8: "bad_row", 9: "invalid_utf8"
    }  # fmt: skip
    assert reading.refused[3].message.startswith("line 3: the row has 3 cells, the header has 2")
    assert "never" not in reading.refused[4].message
    assert reading.refused[4].message.startswith("line 4: a quotation mark is not closed")
    assert reading.refused[9].message.startswith('line 9: byte 0 of its cell "note" is not UTF-8')
    assert reading.passed_on(3) == {"id": "2", "note": "too"}
    assert reading.passed_on(7) == {"id": "6", "note": ""}
    assert reading.passed_on(9) == {"id": "8", "note": "\ufffd"}
    assert [entry.id for entry in reading.entries] == ["1", "2", "3", "4", "5", "6", "7", "8", "1"]


def test_a_quoted_cell_is_whole_wherever_a_block_of_the_file_ends(read: Read) -> None:
    long = 'Line one,\n"quoted" line two, ' * 20_000
    quoted = long.replace('"', '""')
    rows = "".join(f'{n},say {n},"{quoted}"\n' for n in range(6))
    reading = read("t.csv", b"id,prompt,note\n" + rows.encode(), RecordRules(text_column="prompt"))
    assert not reading.refused
    assert reading.prompts == [f"say {n}" for n in range(6)]
    assert {given(request)["note"] for request in reading.requests} == {long}


def test_a_row_that_is_too_long_fails_alone(read: Read) -> None:
    long = b"x" * 3_000_000
    content = b"id,note\n1,a\n2," + long + b'\n3,"' + long + b'"\n4,b\n5,"' + long
    reading = read("t.csv", content, max_line_bytes=2_000_000)
    assert reading.prompts == ["a", "b"]
    assert set(reading.codes.values()) == {"bad_row"}
    assert all("more than max_line_bytes" in refusal.message for refusal in reading.refused.values())
    assert [entry.line for entry in reading.entries] == [2, 3, 4, 5, 6]


def test_names_of_columns_are_made_unique(read: Read) -> None:
    reading = read("t.csv", b"note,,note,\na,b,c,d\n")
    assert given(reading.requests[0]) == {"note": "a", "column_2": "b", "note_2": "c", "column_4": "d"}


def test_thousands_of_columns_of_one_name_take_no_time(read: Read) -> None:
    begun_s = time.process_time()
    reading = read("t.csv", b",".join([b"note"] * 3000) + b"\n" + b",".join([b"a"] * 3000) + b"\n")
    assert time.process_time() - begun_s < 5  # minutes, where each is compared with all before it
    assert list(given(reading.requests[0]))[2999] == "note_3000"


def test_a_reason_repeats_no_name_that_is_as_long_as_a_file(read: Read) -> None:
    with pytest.raises(DropRefused) as refused:
        read("t.csv", b"a" * 100_000 + b",b\n1,2\n", RecordRules(text_column="c"))
    assert len(refused.value.message) < 1000


@pytest.mark.parametrize(
    ("header", "expected"),
    [("id,text", "b"), ("Prompt,text", "a"), ("content,other", "a"), ("a,b", None), ("only", "a")],
)
def test_without_a_setting_the_prompt_is_a_column_that_is_called_so(
    read: Read, header: str, expected: str | None
) -> None:
    content = f"{header}\n{'a,b' if ',' in header else 'a'}\n".encode()
    if expected is not None:
        assert read("t.csv", content, RecordRules()).prompts == [expected]
        return
    with pytest.raises(DropRefused, match=r't\.csv: it has the columns "a", "b": say which one') as refused:
        read("t.csv", content, RecordRules())
    assert refused.value.code == "columns"


def test_a_column_that_is_not_there_refuses_the_whole_table(read: Read) -> None:
    with pytest.raises(DropRefused, match='it has no column "note"; it has "id", "text"'):
        read("t.csv", b"id,text\n1,a\n")


def test_a_table_in_a_folder_that_has_not_the_column_fails_alone(read: Read) -> None:
    reading = read("f", {"a.csv": b"id,text\n1,a\n", "b.csv": b"id,note\n2,b\n"})
    assert reading.prompts == ["b"]
    assert reading.refused[1].message == 'a.csv: it has no column "note"; it has "id", "text"'


# Templates.


def test_a_template_is_text_with_fields_and_nothing_that_is_evaluated() -> None:
    template = 'Say {"a": 1} of {note}, {{note}}, { first name } and {x.y[0]!r}; {} {\n'
    assert template_parts(template) == [
        ('Say {"a": 1} of ', None), ("", "note"), (", ", None), ("{note}", None), (", ", None), ("", "first name"),
        (" and ", None), ("", "x.y[0]!r"), ("; {} {\n", None),
    ]  # fmt: skip
    assert template_problem(template) == ""
    assert "no placeholder" in template_problem("Summarise the note: {{note}}")


def test_records_become_prompts_and_all_their_fields_come_back(read: Read) -> None:
    records = [
        {"id": 1, "note": "text \u2028 one", "age": 12345678901234567890123, "model": 5, "messages": {"x": [1.50]}},
        {"custom_id": "c", "note": "two", "age": None},
        {"note": ["l", "ist"], "age": True, "id": {"no": "label"}},
    ]
    raw = lines(*records)
    reading = read("r.jsonl", raw, RecordRules("Age {age}: {note}"))
    assert reading.prompts == ["Age 12345678901234567890123: text \u2028 one", 'Age true: ["l", "ist"]']
    assert reading.ids == ["1", None]
    assert [given(request) for request in reading.requests] == [records[0], records[2]]
    assert reading.codes == {2: "missing_field"}
    assert reading.refused[2].message.endswith('the field "age" is null')
    assert reading.passed_on(2) == records[1]


@pytest.mark.parametrize("name", ["r.json", "r.jsonl.gz", "r.jsonl"])
def test_a_missing_field_fails_its_record_alone(read: Read, name: str) -> None:
    records = [{"note": "a"}, {"text": "b", "id": 9}, {"note": "c", "prompt": "not this"}]
    content = json.dumps(records).encode() if name == "r.json" else lines(*records)
    reading = read(name, content, RecordRules("{note}"))
    assert reading.prompts == ["a", "c"]
    assert reading.codes == {2: "missing_field"}
    assert 'there is no field "note" in it; it has "text"' in reading.refused[2].message
    assert [entry.id for entry in reading.entries] == [None, "9", None]


def test_what_is_no_record_fails_alone(read: Read) -> None:
    content = b'{"note": "a"}\n[1]\n{"note": \n"text"\n\xff\n{"note": "\xff"}\n{"note": "b"}\n'
    reading = read("r.jsonl", content, RecordRules("{note}"))
    assert reading.prompts == ["a", "b"]
    assert reading.codes == {2: "wrong_type", 3: "bad_json", 4: "wrong_type", 5: "invalid_utf8", 6: "invalid_utf8"}
    assert reading.refused[6].message.startswith("line 6: ")


def test_a_template_cannot_blow_a_record_up(read: Read) -> None:
    reading = read("r.jsonl", lines({"n": "x" * 1000}, {"n": "y"}), RecordRules("{n}" * 1000), max_line_bytes=10_000)
    assert reading.codes == {1: "line_too_long"}
    assert reading.prompts == ["y" * 1000]


def test_a_text_column_alone_serves_records_too(read: Read) -> None:
    reading = read("r.jsonl", lines({"note": "a", "mrn": "x7"}), RecordRules(None, "note", "mrn"))
    assert (reading.prompts, reading.ids) == (["a"], ["x7"])


def test_the_same_name_as_what_carries_fields_is_still_a_field(read: Read) -> None:
    reading = read("r.jsonl", lines({"prompt": "p", "input_fields": {"a": 1}, "b": 2}), RecordRules())
    assert given(reading.requests[0]) == {"a": 1, "b": 2}
    reading = read("r.jsonl", lines({"prompt": "p", "input_fields": 7}), RecordRules())
    assert given(reading.requests[0]) == {"input_fields": 7}


# Texts.


def test_a_folder_of_texts_is_called_by_their_names(read: Read) -> None:
    files = {
        "b.txt": "Größe\n".encode(), "a.md": b"# Title\n{not a field}", "c.txt.gz": gzip.compress(b"packed"),
        "d.txt": b" \n", "e.txt": b"\xff", "g.txt": b"one", "g.md": b"two",
    }  # fmt: skip
    reading = read("f", files, RecordRules())
    assert reading.ids == ["a", "b", "c", "g.md", "g.txt"]
    assert reading.prompts == ["# Title\n{not a field}", "Größe\n", "packed", "two", "one"]
    assert reading.codes == {4: "bad_file", 5: "invalid_utf8"}
    assert reading.refused[5].message == "e.txt, the text: its byte 0 is not UTF-8; save it as UTF-8"
    assert [given(request) for request in reading.requests[:2]] == [{"file": "a.md"}, {"file": "b.txt"}]
    assert reading.passed_on(5) == {"file": "e.txt"}
    assert reading.entries[4].id == "e"


def test_a_template_is_put_around_texts(read: Read) -> None:
    reading = read("f", {"a.txt": b"hello"}, RecordRules("Summarise {file}:\n{text}"))
    assert reading.prompts == ["Summarise a.txt:\nhello"]
    assert given(reading.requests[0]) == {"file": "a.txt"}


def test_one_text_is_one_prompt_unless_it_is_json_called_so(read: Read, tmp_path: Path) -> None:
    assert read("note.md", b"[a link](x)\n- item\n", RecordRules()).prompts == ["[a link](x)\n- item\n"]
    assert recognise(tmp_path / "input", "note.md") is Format.TEXT
    assert read("prompts.txt", lines({"prompt": "a"}, {"prompt": "b"}), RecordRules()).prompts == ["a", "b"]


def test_a_text_that_is_too_long_is_refused(read: Read) -> None:
    reading = read("f", {"a.txt": b"x" * 5000, "b.txt": b"y"}, RecordRules(), max_line_bytes=4096)
    assert (reading.codes, reading.prompts) == ({1: "line_too_long"}, ["y"])


# Settings.


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"template": "no field"}, "template: has no placeholder"),
        ({"template": "{a}", "text_column": "b"}, "give one of them"),
        ({"text_column": ""}, "text_column: must be"),
        ({"id_column": 5}, "id_column: must be"),
        ({"tmplate": "{a}"}, "did you mean template"),
        ({"encoding": "klingon"}, "encoding: there is no encoding 'klingon'; utf-8, cp1252"),
        ({"encoding": "hex"}, "there is no encoding 'hex'"),
        ({"encoding": "punycode"}, "there is no encoding 'punycode'"),
        ({"lines": "many"}, "lines"),
    ],
)
def test_wrong_settings_of_records_are_explained(mapping: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_job_settings(mapping, "job.toml")


def test_settings_of_records_belong_to_a_job() -> None:
    settings, notes = parse_job_settings({"template": "{a}", "id_column": "b", "model": "m"}, "job.toml")
    assert (settings.template, settings.text_column, settings.id_column, settings.model) == ("{a}", None, "b", "m")
    assert notes == []
