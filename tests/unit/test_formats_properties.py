"""Whatever bytes somebody drops: no parser crashes, no line is lost or counted twice, and memory stays bounded."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obatchd.dispatch.protocol import JobContext
from obatchd.dispatch.worker.body import left_out, request_body
from obatchd.errors import DropRefused
from obatchd.jobs.formats import RecordRules, parse_request, read_entries, request_file
from obatchd.jobs.formats.lines import BatchIndexer, index_line
from obatchd.jobs.formats.source import ByteSource
from obatchd.jobs.formats.split import split_array, split_lines
from obatchd.jobs.formats.table import split_rows
from obatchd.jobs.model import Entry
from obatchd.prompts.template import template_parts
from obatchd.settings.tables.spool import InboxSettings

pytestmark = pytest.mark.filterwarnings("error")
SOME = settings(max_examples=80, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
LIMITS = InboxSettings(max_line_bytes=1024, max_unpacked_bytes=1 << 20)
NAMES = ["d.jsonl", "d.json", "d.csv", "d.tsv", "d.txt", "d.md", "d.jsonl.gz", "d.csv.gz", "d.json.gz"]
CONTEXT = JobContext(1, "job", "", {}, 100)
RULES = [RecordRules(), RecordRules("{a} and {prompt}"), RecordRules(None, "a", "id")]

# Bytes that mean something to one of the parsers, beside any others.
TOKENS = st.sampled_from(
    [b'"', b'""', b"\n", b"\r\n", b",", b";", b"\t", b"{", b"}", b"[", b"]", b":", b"\\", b'{"prompt":"x"}',
     b"a,prompt", b'{"images":["a.png"],"prompt":"x"}', b'{"prompt":"x","messages":[]}',
     b'{"prompt":"x","images":["",1]}',
     b'{"a":', b"null", b"\xef\xbb\xbf", b"\xff", b"\x00", b"1e999",
     b'{"custom_id":"c","method":"POST","url":"/v1/completions","body":{}}', b"NaN", b"\\ud83d", b"\x1e", b"sep=;",
     b'{"rows":[', b'{"prompt":{"0":"a"}}', b"\r", b"\xff\xfe", b'"id":"i"', b'{"messages":[["human","x"]]}']
)  # fmt: skip
BYTES = st.one_of(st.binary(max_size=300), st.lists(TOKENS, max_size=60).map(b"".join))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


class Trickle(io.BytesIO):
    """Gives what it has in pieces of a few bytes, as a slow disk or a network may."""

    def __init__(self, content: bytes, size: int) -> None:
        super().__init__(content)
        self._size = size

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(self._size if size is None or size < 0 else min(size, self._size))


def entries(content: bytes, name: str, rules: RecordRules) -> tuple[list[Entry], bytes]:
    """What becomes of a drop, and the file that its entries refer to."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "input"
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        found = list(read_entries(path, name, LIMITS, rules=rules))
        return found, request_file(path).read_bytes()


@SOME
@given(BYTES, st.sampled_from(NAMES), st.sampled_from(RULES))
def test_any_bytes_become_requests_or_reasons(content: bytes, name: str, rules: RecordRules) -> None:
    try:
        found, requests = entries(content, name, rules)
    except DropRefused as refused:
        assert refused.message
        return
    assert found
    assert [entry.line for entry in found] == sorted({entry.line for entry in found})
    for entry in found:
        raw = requests[entry.offset : entry.offset + entry.length]
        if entry.refusal is None:
            assert parse_request(raw).id == entry.id  # the worker understands what was indexed
        else:
            assert entry.refusal.code
            assert entry.refusal.message


@SOME
@given(BYTES, st.integers(1, 7))
def test_no_line_is_lost(content: bytes, size: int) -> None:
    pieces = list(split_lines(ByteSource(Trickle(content, size)), 64))
    wanted = {
        number: line.strip(b" \t\r\n")
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
        if line.strip()
    }
    assert {piece.number for piece in pieces} == set(wanted)
    for piece in pieces:
        assert piece.raw is None or (piece.raw == wanted[piece.number] == content[piece.offset :][: piece.length])
        assert (piece.raw is None) == (len(wanted[piece.number]) > 64) or piece.raw is None


@SOME
@given(BYTES, st.integers(1, 7), st.sampled_from([b",", b"\t", None]))
def test_no_line_of_a_table_is_lost(content: bytes, size: int, delimiter: bytes | None) -> None:
    rows = list(split_rows(ByteSource(Trickle(content, size)), 64, delimiter))
    again = list(split_rows(ByteSource(io.BytesIO(content)), 64, delimiter))
    assert rows == again  # however the bytes come
    begin = len(b"\xef\xbb\xbf") if content.startswith(b"\xef\xbb\xbf") else 0
    if separator := re.match(rb'\s*"?sep=[^\r\n"]"?\r?\n', content[begin:], re.IGNORECASE):
        begin += separator.end()  # a line for Excel, which is no row
    for row in rows:
        between = content[begin : row.offset]
        assert not between.strip(b" \r\n")  # nothing but blank lines is passed over
        assert row.number == 1 + content.count(b"\n", 0, row.offset)
        begin = row.offset + row.length
        assert content[begin : begin + 1] in (b"", b"\n")
        assert row.cells is not None or row.problem
    assert not content[begin:].strip(b" \r\n")


@SOME
@given(
    st.lists(st.lists(st.text(max_size=12), min_size=2, max_size=2), min_size=1, max_size=8),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_spreadsheet_writes_is_read_as_it_was(rows: list[list[str]], delimiter: str, end: str) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    source = ByteSource(Trickle(text.getvalue().encode("utf-8", "replace"), 5))
    read = [row.cells for row in split_rows(source, 4096, delimiter.encode())]
    assert read == [[cell.encode("utf-8", "replace") for cell in row] for row in rows]


@SOME
@given(st.lists(JSON, max_size=8), st.integers(1, 9), st.sampled_from([None, 1]))
def test_no_element_of_an_array_is_lost(values: list[Any], size: int, indent: int | None) -> None:
    content = json.dumps(values, indent=indent).encode()
    pieces = list(split_array(ByteSource(Trickle(content, size)), 4096))
    assert [json.loads(piece.raw or b"") for piece in pieces] == values
    assert [piece.number for piece in pieces] == list(range(1, len(values) + 1))


@SOME
@given(st.dictionaries(st.text(min_size=1, max_size=8), JSON, max_size=5), st.sampled_from(RULES))
def test_every_field_of_a_record_comes_back_as_it_was(record: dict[str, Any], rules: RecordRules) -> None:
    content = json.dumps({"prompt": "p", "a": "b", **record}).encode()
    try:
        [entry], requests = entries(content + b"\n", "d.jsonl.gz", rules)
    except DropRefused as refused:
        assert refused.code
        return
    if entry.refusal is None and rules.given:
        request = parse_request(requests[entry.offset : entry.offset + entry.length])
        assert {name: json.loads(bytes(value)) for name, value in request.input.items()} == json.loads(content)


PARTS = st.sampled_from(
    ["role", "content", "type", "text", "image_url", "url", "user", "hi", "json_schema", "schema", "low", "tokens", 1,
     "from", "value", "human", "function_call", "tool_calls", "function", "name", "arguments", "{}", "assistant", 2.0]
)  # fmt: skip
ODD = st.recursive(PARTS | JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(
        ["role", "content", "type", "text", "image_url", "url", "schema", "json_schema", "from", "value", "tool_calls",
         "function", "name", "arguments", "images", "effort", "temperature", "num_ctx", "stop"]
    ), inner, max_size=4
), max_leaves=8)  # fmt: skip
NAMES_OF_BODY = [
    "model", "messages", "prompt", "input", "stream", "n", "tools", "temperature", "stop", "max_tokens", "dimensions",
    "response_format", "reasoning_effort", "logprobs", "encoding_format", "system", "instructions", "text", "thinking",
    "tool_choice", "options", "images", "reasoning",
]  # fmt: skip
GOOD = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi", "model": "m"}
# One thing odd in what is good otherwise: so each check is reached.
BODY = st.dictionaries(st.sampled_from(NAMES_OF_BODY), ODD, max_size=2).map(lambda odd: GOOD | odd)
NAMES_OF_REQUEST = [
    "id", "prompt", "content", "messages", "system", "options", "images", "format", "think", "in_source", "input",
    "keep_alive", "model", "priority", "context_length", "max_response_tokens", "role", "other", "conversations",
    "instruction", "history", "context", "image", "image_url", "tools", "tool_choice", "temperature", "stop",
    "reasoning", "chat_template_kwargs", "response_format", "system_prompt", "body", "params", "url", "custom_id",
    "input_notes", "input_fields", "text", "n", "instructions", "logprobs",
]  # fmt: skip
URLS = st.sampled_from(
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/api/generate", "/api/chat"]
)


@settings(SOME, max_examples=150)
@given(st.lists(st.tuples(st.text(max_size=5), URLS, BODY) | st.tuples(JSON, JSON, JSON), min_size=1, max_size=4))
def test_any_line_of_a_batch_file_is_read_or_refused(rows: list[tuple[Any, Any, Any]]) -> None:
    index = BatchIndexer()
    for number, (custom_id, url, body) in enumerate(rows, 1):
        raw = json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode()
        entry = index(number, 0, raw)
        if entry.refusal is None:
            request = parse_request(raw)
            assert (request.id, request.url) == (custom_id, url)  # a text that is not empty, an endpoint
            assert request.embed is not None or request.prompt or request.messages
            assert request_body(request, CONTEXT, "m", {})["messages"]
        else:
            assert entry.refusal.message.startswith(f"line {number}: ")


@settings(SOME, max_examples=150)
@given(
    st.sampled_from([{"prompt": "p"}, {"messages": GOOD["messages"]}, {"input": "i"}, {}]),
    st.dictionaries(st.sampled_from(NAMES_OF_REQUEST), ODD, max_size=3),
)
def test_any_request_is_read_or_refused(good: dict[str, Any], odd: dict[str, Any]) -> None:
    raw = json.dumps(good | odd).encode()
    entry = index_line(1, 0, raw)
    if entry.refusal is None:
        request = parse_request(raw)
        assert request.id == entry.id
        if request.embed is None:
            assert request_body(request, CONTEXT, "m", {})["messages"]
        left_out(request, ["completion"])


@SOME
@given(st.text(alphabet='{}" a:\n', max_size=60))
def test_a_template_is_its_parts(template: str) -> None:
    parts = template_parts(template)
    assert all(literal == "" or field is None for literal, field in parts)
    if not any(field for _, field in parts) and "{{" not in template:
        assert "".join(literal for literal, _ in parts) == template


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("d.jsonl", b'{"prompt":"x"}\n'),
        ("d.csv", b'1,"x\n'),
        ("d.csv", b'"""\n'),
        ("d.csv", b"a,b\n"),
        ("d.txt", b"x\n"),
    ],
)
def test_memory_does_not_grow_with_the_drop(tmp_path: Path, name: str, line: bytes) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"id,prompt\n" * (name == "d.csv") + line * (3 * 1024**2 // len(line)))
    limits = InboxSettings(max_line_bytes=64 * 1024)
    tracemalloc.start()
    try:
        for count, _entry in enumerate(read_entries(path, name, limits)):
            if count > 5_000:
                break
        assert tracemalloc.get_traced_memory()[1] < 6 * 1024**2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt":"' + rb"\\" * 500_000 + rb'\ud83d"}',
        b'{"prompt":"' + rb"\n" * 500_000 + rb'\ud83d"}',
        b'{"prompt":"' + rb"\ud83d\ude00" * 80_000 + rb'\ud83d"}',
        b'{"prompt":"' + b"NaN " * 250_000 + b'","score":NaN}',
        b'{"prompt":"' + rb"\"" * 500_000 + b'","score":NaN}',
        b'{"prompt":"p","scores":[' + b"NaN," * 250_000 + b"1]}",
    ],
    ids=lambda line: line[11:20].decode(),
)
def test_a_line_is_mended_in_the_memory_of_a_few_copies(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "input"
    path.write_bytes(line + b"\n")
    tracemalloc.start()
    try:
        [entry] = read_entries(path, "d.jsonl", InboxSettings())
        assert entry.refusal is None
        assert tracemalloc.get_traced_memory()[1] < 8 * len(line)
    finally:
        tracemalloc.stop()
