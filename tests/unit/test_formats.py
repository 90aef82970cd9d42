"""Every format a drop may have: what becomes a request, what does not and why, and where its bytes lie."""

from __future__ import annotations

import gzip
import json
import random
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from obatchd.errors import DropRefused
from obatchd.jobs.formats import Format, parse_request, read_entries, recognise, request_file
from obatchd.jobs.formats.request import request_id
from obatchd.jobs.model import Entry
from obatchd.settings.tables.spool import InboxSettings

KIB = 1024


class Reading:
    """A drop's entries, and the bytes that each refers to."""

    def __init__(self, path: Path, name: str, limits: InboxSettings) -> None:
        self.entries = list(read_entries(path, name, limits))
        content = request_file(path).read_bytes()
        self.raw = {e.line: content[e.offset : e.offset + e.length] for e in self.entries}
        for entry in self.entries:
            if entry.checksum:
                assert zlib.crc32(self.raw[entry.line]) == entry.checksum
        self.good = [e for e in self.entries if e.refusal is None]
        self.prompts = [parse_request(self.raw[e.line]).prompt for e in self.good]
        self.refusals = {e.line: e.refusal for e in self.entries if e.refusal is not None}
        self.codes = {line: refusal.code for line, refusal in self.refusals.items()}

    @property
    def lines(self) -> list[int]:
        return [entry.line for entry in self.entries]

    @property
    def ids(self) -> list[str | None]:
        return [entry.id for entry in self.good]

    def message(self, line: int) -> str:
        return self.refusals[line].message


Read = Callable[..., Reading]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads ``content`` as a drop called ``name``; the rest are limits."""

    def reading(name: str, content: bytes, **limits: Any) -> Reading:
        path = tmp_path / "input"
        path.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
        return Reading(path, name, InboxSettings(**limits))

    return reading


def prompt(text: str, **more: Any) -> bytes:
    return json.dumps({"prompt": text, **more}).encode()


def prompts(*texts: str) -> list[bytes]:
    return [prompt(text) for text in texts]


def lines(*requests: bytes) -> bytes:
    return b"".join(request + b"\n" for request in requests)


def array(requests: Sequence[bytes]) -> bytes:
    return b"[" + b",\n ".join(requests) + b"]\n"


PRETTY = json.dumps({"id": "p", "prompt": "a"}, indent=2).encode()
SHAPES: list[tuple[str, bytes, Format, list[str]]] = [
    ("d.jsonl", lines(*prompts("a", "b")), Format.LINES, ["a", "b"]),
    ("d.ndjson", lines(*prompts("a", "b")), Format.LINES, ["a", "b"]),
    ("D.JSONL", lines(*prompts("a", "b")), Format.LINES, ["a", "b"]),
    ("d.json", prompt("a"), Format.OBJECT, ["a"]),
    ("d.json", lines(prompt("a")), Format.OBJECT, ["a"]),
    ("d.json", PRETTY, Format.OBJECT, ["a"]),
    ("d.json", PRETTY.replace(b"\n", b"\r\n"), Format.OBJECT, ["a"]),
    ("d.json", b'{"messages": [\n{"role": "user", "content": "a"}]}', Format.OBJECT, ["a"]),
    ("d.json", b'{"options":\n{"seed": 1}, "prompt": "a"}', Format.OBJECT, ["a"]),
    ("d.json", lines(*prompts("a", "b")), Format.LINES, ["a", "b"]),
    ("d.json", lines(prompt("a"), b"", prompt("b")), Format.LINES, ["a", "b"]),
    ("d.json", lines(prompt("a" * 100 * KIB), prompt("b")), Format.LINES, ["a" * 100 * KIB, "b"]),
    ("d.json", array(prompts("a", "b")), Format.ARRAY, ["a", "b"]),
    ("d.json", json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=1).encode(), Format.ARRAY, ["a", "b"]),
    ("d.jsonl", array(prompts("a", "b")), Format.ARRAY, ["a", "b"]),
    ("d.jsonl", array(prompts("a", "b")).replace(b"\n", b""), Format.ARRAY, ["a", "b"]),
    ("d.json", b"\n\n \t" + array(prompts("a")), Format.ARRAY, ["a"]),
]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("name", "content", "form", "expected"), SHAPES)
def test_every_format_plain_and_packed(
    read: Read, tmp_path: Path, name: str, content: bytes, form: Format, expected: list[str], packed: bool
) -> None:
    name += ".gz" if packed else ""
    reading = read(name, content)
    assert recognise(tmp_path / "input", name) is form
    assert reading.prompts == expected
    assert not reading.refusals


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_one_byte_order_mark_is_passed_over(read: Read, name: str, packed: bool) -> None:
    name += ".gz" if packed else ""
    for content in (lines(*prompts("a", "b")), array(prompts("a", "b"))):
        assert read(name, b"\xef\xbb\xbf" + content).prompts == ["a", "b"]


def test_original_format_and_conversations(read: Read) -> None:
    reading = read(
        "d.jsonl",
        lines(
            b'{"role": "user", "content": "extract"}',
            b'{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "ask"}]}',
            b'{"custom_id": 7, "prompt": "p", "max_response_tokens": 5, "options": {"num_ctx": 4096, "seed": 1}}',
        ),
    )
    assert reading.prompts == ["extract", "ask", "p"]
    assert reading.ids == [None, None, "7"]
    assert [entry.context_length for entry in reading.entries] == [None, None, 4096]


def test_plain_lines_stay_where_they_are(read: Read, tmp_path: Path) -> None:
    read("d.jsonl", lines(*prompts("a")))
    assert request_file(tmp_path / "input") == tmp_path / "input"


# Lines.


def test_blank_lines_are_skipped_but_counted(read: Read) -> None:
    reading = read("d.jsonl", b"\n  \r\n" + prompt("a") + b"\r\n\n\t" + prompt("b") + b"  \n\n")
    assert reading.lines == [3, 5]
    assert reading.prompts == ["a", "b"]
    assert [reading.raw[3], reading.raw[5]] == prompts("a", "b")


def test_the_last_line_needs_no_newline(read: Read) -> None:
    assert read("d.jsonl", prompt("a") + b"\n" + prompt("b")).prompts == ["a", "b"]


def test_lone_carriage_returns_end_lines_only_where_nothing_else_does(read: Read) -> None:
    reading = read("d.jsonl", prompt("a") + b"\r" + prompt("b") + b"\n" + prompt("c"))
    assert (reading.prompts, reading.codes) == (["a", "b", "c"], {})  # objects one after the other
    reading = read("d.jsonl", prompt("c") + b"\n" + prompt("a") + b"\r" + prompt("b") + b"\n")
    assert reading.codes == {2: "bad_json"}
    reading = read("d.jsonl", prompt("a") + b"\r{oops\r" + prompt("b") + b"\r")
    assert (reading.prompts, reading.codes) == (["a", "b"], {2: "bad_json"})


def test_unicode_line_ends_inside_strings_do_not_end_lines(read: Read) -> None:
    text = "one\u2028two\u2029three\x85four\x0bfive"
    line = json.dumps({"prompt": text}, ensure_ascii=False).encode().replace(b"\x0b", b"\\u000b")
    reading = read("d.jsonl", lines(line, prompt("b")))
    assert reading.prompts == [text, "b"]


def test_lines_longer_than_a_block_keep_their_place(read: Read) -> None:
    long = "x" * (2 * 1024 * KIB + 17)
    reading = read("d.jsonl", lines(prompt("a"), prompt(long), prompt("b")))
    assert reading.prompts == ["a", long, "b"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
def test_a_line_too_long_fails_alone(read: Read, name: str) -> None:
    reading = read(name, lines(prompt("a"), prompt("x" * 5000), prompt("b")), max_line_bytes=4096)
    assert reading.codes == {2: "line_too_long"}
    assert reading.prompts == ["a", "b"]
    assert "max_line_bytes (4096)" in reading.message(2)
    assert "line 2" in reading.message(2)


def test_lines_far_too_long_are_not_held_in_memory(read: Read) -> None:
    reading = read("d.jsonl", lines(b"{" * (5 * 1024 * KIB), prompt("b")), max_line_bytes=4096)
    assert reading.codes == {1: "line_too_long"}
    assert f"{5 * 1024 * KIB} bytes" in reading.message(1)
    assert reading.prompts == ["b"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
def test_a_line_that_is_not_utf8_says_which_byte(read: Read, name: str) -> None:
    for field in (b'"prompt"', b'"prompt": "x", "carried"'):
        bad = b"{" + field + b': "\xff"}'
        reading = read(name, lines(prompt("a"), b"  " + bad, prompt("b")))
        assert reading.codes == {2: "invalid_utf8"}
        assert reading.message(2) == f"line 2: its byte {bad.index(255)} is not UTF-8"
        assert reading.prompts == ["a", "b"]


BAD: list[tuple[bytes, str, str]] = [
    (b"{oops}", "bad_json", "column 2"),
    (b'{"prompt": "x"', "bad_json", "its end is missing"),
    (b'{"prompt": "x"} {"prompt": "y"}', "bad_json", "trailing"),
    (b'{"prompt": "x"}\x00', "bad_json", "trailing"),
    (b"\x00\x00\x00\x00", "bad_json", "column 1"),
    (b'{"prompt": "x", "n": nan}', "bad_json", ""),
    (b'{"prompt": "a\tb"}', "bad_json", ""),
    (b'{"prompt": "x", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "bad_json", "too deeply"),
    (b'{"prompt": "x", "n": ' + b"[" * 1_000_000, "bad_json", "too deeply"),
    (b"[1, 2]", "wrong_type", "object"),
    (b'"just text"', "wrong_type", "object"),
    (b'{"prompt": 5}', "wrong_type", "prompt must be a text, not 5"),
    (b'{"prompt": "x", "id": {}}', "wrong_type", "id must be a text or a number, not {}"),
    (b'{"prompt": "x", "options": []}', "wrong_type", "options must be an object"),
    (b'{"prompt": "x", "priority": "urgent"}', "wrong_type", "low, normal, high"),
    (b'{"prompt": "x", "context_length": 0}', "wrong_type", "context_length"),
    (b'{"prompt": "x", "options": {"num_ctx": "8k"}}', "wrong_type", "8k"),
    (b'{"prompt": "x", "options": {"num_ctx": true}}', "wrong_type", "not true"),
    (b'{"prompt": "x", "max_response_tokens": -1}', "wrong_type", "max_response_tokens"),
    (b'{"messages": [{"role": "user"}]}', "wrong_type", "content"),
    (b'{"messages": ["x"]}', "wrong_type", "messages"),
    (b"{}", "missing_prompt", ""),
    (b'{"prompt": ""}', "missing_prompt", ""),
    (b'{"prompt": null, "messages": []}', "missing_prompt", ""),
    (b'{"content": " \\n\\t "}', "missing_prompt", "white space"),
    (b'{"note": "x", "n": 1}', "missing_prompt", 'it has the fields "note", "n"'),
    (b'{"note": "x"}', "missing_prompt", "--text-column or --template"),
]


@pytest.mark.parametrize(("raw", "code", "words"), BAD)
def test_a_bad_line_fails_alone_and_says_why(read: Read, raw: bytes, code: str, words: str) -> None:
    reading = read("d.jsonl", lines(prompt("a"), raw, prompt("b")))
    assert reading.codes == {2: code}
    assert reading.message(2).startswith("line 2: ")
    assert words in reading.message(2)
    assert reading.prompts == ["a", "b"]
    assert reading.raw[2] == raw


def test_a_drop_of_nothing_but_bad_lines_is_a_job_that_fails(read: Read) -> None:
    reading = read("d.jsonl", lines(b"{nonsense", b"more", b"and more"))
    assert reading.codes == {1: "bad_json", 2: "bad_json", 3: "bad_json"}


def test_a_bad_first_line_does_not_hide_the_format(read: Read) -> None:
    for first in (b"header", b"[1, 2]", b"[oops", b"{bad", b'{"prompt": "x",}'):
        reading = read("d.jsonl", lines(first, prompt("a"), prompt("b")))
        assert (list(reading.codes), reading.prompts) == ([1], ["a", "b"]), first
    assert read("d.json", lines(b'{"prompt": "x",}', prompt("b"))).prompts == ["b"]


def test_what_is_odd_but_json_is_kept(read: Read) -> None:
    big = b"123456789012345678901234567890"
    reading = read(
        "d.jsonl",
        lines(
            b'{"id": ' + big + b', "prompt": "a", "n": 1e999, "m": ' + b"9" * 5000 + b"}",
            b'{"prompt": "first", "prompt": "last", "id": "one", "id": "two"}',
            b'{"prompt": "nul \\u0000 inside", "id": ""}',
            b'{"prompt": null, "content": "c", "id": null, "custom_id": "k"}',
        ),
    )
    assert reading.ids == [big.decode(), "two", None, "k"]
    assert reading.prompts == ["a", "last", "nul \0 inside", "c"]
    parsed = [parse_request(reading.raw[line]) for line in reading.lines]
    assert [request.id for request in parsed] == reading.ids
    assert {name: bytes(value) for name, value in parsed[0].input.items()} == {"n": b"1e999", "m": b"9" * 5000}


def test_more_than_max_requests_are_one_failure_that_says_so(read: Read) -> None:
    reading = read("d.jsonl", lines(*prompts("a", "b", "c", "d")), max_requests=2)
    assert reading.prompts == ["a", "b"]
    assert reading.codes == {3: "too_many_requests"}
    assert "max_requests (2)" in reading.message(3)


# What is no drop at all.


def test_a_refused_line_keeps_its_id(read: Read) -> None:
    content = (
        b'{"id": "x"}\n{"custom_id": 7, "prompt": 5}\n{"id": "y", "prompt": "p", "priority": "urgent"}\nnot json\n'
        b'{"id": []}\n{"id": "z", "prompt": "good"}\n'
    )
    for reading in (read("r.jsonl", content), read("r.jsonl.gz", content)):
        assert [entry.id for entry in reading.entries] == ["x", "7", "y", None, None, "z"]
        assert set(reading.codes) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("d.jsonl", b"", "empty"),
        ("d.jsonl", b" \n\r\n\t\n", "empty"),
        ("d.json", b"\xef\xbb\xbf\n", "empty"),
        ("d.json.gz", b"", "empty"),
        ("d.jsonl", b"\n" * 100 * KIB, "no_requests"),
        ("d.json", b"[]", "no_requests"),
        ("d.json", b"[ \n ]\n", "no_requests"),
        ("d.jsonl", b"id,prompt\n1,hello\n", "format"),
        ("d.json", b'"only a string"', "format"),
        ("d.json", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "format"),
        ("d.jsonl", b"\0" * 4096, "format"),
        ("d.jsonl", gzip.compress(b'{"prompt": "x"}', mtime=0), "format"),
    ],
)
def test_what_is_no_drop_is_refused_whole(read: Read, name: str, content: bytes, code: str) -> None:
    with pytest.raises(DropRefused) as refused:
        read(name, content)
    assert refused.value.code == code
    assert name in refused.value.message


def test_a_gz_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(prompt("a"))
    with pytest.raises(DropRefused, match="gzip") as refused:
        list(read_entries(tmp_path / "input", "d.jsonl.gz", InboxSettings()))
    assert refused.value.code == "format"


# Packed drops.


def packed(tmp_path: Path, content: bytes, name: str = "d.jsonl.gz", **limits: Any) -> Reading:
    (tmp_path / "input").write_bytes(content)
    return Reading(tmp_path / "input", name, InboxSettings(**limits))


def noise(count: int) -> list[bytes]:
    """Prompts that gzip cannot shorten much."""
    generator = random.Random(7)
    return [prompt(generator.randbytes(200).hex(), id=f"r{number}") for number in range(count)]


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.json.gz"])
def test_a_gz_that_was_cut_off_runs_what_is_there_and_says_so(tmp_path: Path, name: str) -> None:
    requests = noise(500)
    whole = gzip.compress(lines(*requests) if name == "d.jsonl.gz" else array(requests), mtime=0)
    reading = packed(tmp_path, whole[: len(whole) // 2], name)
    assert len(reading.good) > 100
    assert reading.ids == [f"r{number}" for number in range(len(reading.good))]
    [(line, code)] = reading.codes.items()
    assert (line, code) == (len(reading.good) + 1, "unreadable")
    assert "cut off" in reading.message(line)


def test_a_small_gz_that_was_cut_off_runs_what_is_there(tmp_path: Path) -> None:
    whole = gzip.compress(lines(*prompts("a", "b", "c")))
    reading = packed(tmp_path, whole[:-8])
    assert reading.prompts == ["a", "b", "c"]
    assert reading.codes == {4: "unreadable"}


def test_a_gz_with_damage_inside_fails_from_there(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(lines(*noise(500))))
    whole[len(whole) // 2 :: 100] = b"\0" * len(whole[len(whole) // 2 :: 100])
    reading = packed(tmp_path, bytes(whole))
    assert reading.entries[-1].refusal is not None
    assert reading.entries[-1].refusal.code == "unreadable"
    assert len(reading.good) > 100


def test_several_gz_one_after_the_other_are_one_drop(tmp_path: Path) -> None:
    assert packed(tmp_path, gzip.compress(lines(prompt("a"))) + gzip.compress(lines(prompt("b")))).prompts == ["a", "b"]


@pytest.mark.parametrize(
    "bomb", [b"\n" * 10_000_000, b"x" * 10_000_000, b" " * 10_000_000], ids=["lines", "one line", "blank"]
)
def test_a_bomb_is_not_unpacked(tmp_path: Path, bomb: bytes) -> None:
    content = gzip.compress(lines(prompt("a")) + bomb + lines(prompt("never")))
    reading = packed(tmp_path, content, max_unpacked_bytes=100_000, max_line_bytes=4096)
    assert reading.prompts == ["a"]
    assert list(reading.codes.values()) == ["unpacked_too_large"]
    assert "max_unpacked_bytes (100000)" in reading.message(reading.lines[-1])
    assert request_file(tmp_path / "input").stat().st_size < 100_000


def test_a_drop_of_exactly_the_limit_is_whole(tmp_path: Path) -> None:
    content = lines(*prompts("a" * 600, "b" * 600))
    assert not packed(tmp_path, gzip.compress(content, mtime=0), max_unpacked_bytes=len(content)).refusals
    over = packed(tmp_path, gzip.compress(content, mtime=0), max_unpacked_bytes=len(content) - 1)
    assert list(over.codes.values()) == ["unpacked_too_large"]


def test_a_full_disk_stops_the_reading_and_blames_no_request(tmp_path: Path) -> None:
    def check_space(size_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "input").write_bytes(array(prompts("a", "b")))
    with pytest.raises(OSError, match="No space"):
        list(read_entries(tmp_path / "input", "d.json", InboxSettings(), check_space=check_space))


# Arrays and objects.


def test_elements_keep_their_bytes(read: Read) -> None:
    element = b'{ "prompt":"\\u00e9 \xc3\xa9", "n":1.50e3, "big":123456789012345678901234567890, "n":0.1 }'
    reading = read("d.json", array([element, element.replace(b",", b",\r\n")]))
    assert reading.raw[1] == element
    assert reading.raw[2] == element.replace(b",", b",  ")
    assert not reading.refusals


def test_brackets_commas_and_quotes_in_strings_split_nothing(read: Read) -> None:
    texts = ['],{"[', 'a\\"b', "\\", '\\\\"', '"', "}{", "a\u2028b", ",,,"]
    assert read("d.json", array(prompts(*texts))).prompts == texts


def test_arrays_are_split_alike_wherever_the_blocks_end(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ['],{"[\\', 'a\\"b', "\\", "é]"]
    content = array([prompt(text, n=[[1, {"a": "]"}], "\\"]) for text in texts])
    offsets = {}
    for size in (1, 2, 3, 7, 1024):
        monkeypatch.setattr("obatchd.jobs.formats.split._BLOCK_BYTES", size)
        reading = read("d.json", content)
        assert reading.prompts == texts
        offsets[size] = [(entry.offset, entry.length) for entry in reading.entries]
    assert len(set(map(tuple, offsets.values()))) == 1


def test_a_bad_element_fails_alone(read: Read) -> None:
    content = array([prompt("a"), b'{"prompt" "x"}', b"7", prompt("b") + b" " + prompt("c"), b"", prompt("d")])
    reading = read("d.json", content)
    assert reading.prompts == ["a", "d"]
    assert reading.codes == {2: "bad_json", 3: "wrong_type", 4: "bad_json", 5: "bad_json"}
    assert reading.message(2).startswith("element 2: ")


def test_an_array_that_was_cut_off_runs_what_is_there_and_says_so(read: Read) -> None:
    content = array(prompts("a", "b", "c"))
    reading = read("d.json", content[: content.index(b'"c"') + 1])
    assert reading.prompts == ["a", "b"]
    assert reading.codes == {3: "unreadable"}
    assert "element 3" in reading.message(3)


def test_what_follows_an_array_is_reported(read: Read) -> None:
    content = array(prompts("a"))
    reading = read("d.json", content + b"  " + prompt("b"))
    assert reading.prompts == ["a"]
    assert reading.codes == {2: "unreadable"}
    assert f"{len(content) + 2} bytes" in reading.message(2)


def test_a_comma_too_many_at_the_end_is_forgiven(read: Read) -> None:
    assert read("d.json", b'[{"prompt": "a"},\n]').prompts == ["a"]


def test_an_element_too_long_fails_alone_and_is_not_held_in_memory(read: Read) -> None:
    reading = read("d.json", array(prompts("a", "x" * 3 * 1024 * KIB, "b")), max_line_bytes=4096)
    assert reading.prompts == ["a", "b"]
    assert reading.codes == {2: "line_too_long"}


def test_an_object_too_long_fails(read: Read) -> None:
    reading = read("d.json", prompt("x" * 5000), max_line_bytes=4096)
    assert reading.codes == {1: "line_too_long"}


def test_an_array_nested_a_million_deep_fails_alone(read: Read) -> None:
    reading = read("d.json", array([b'{"n":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", prompt("b")]))
    assert reading.codes == {1: "bad_json"}
    assert reading.prompts == ["b"]
    assert request_id(b'{"n":' + b"[" * 100_000) is None


def test_a_long_packed_object_is_read_in_a_moment(read: Read) -> None:
    text = random.Random(1).randbytes(4 * 1024**2).hex()
    begun_s = time.process_time()
    assert read("d.json.gz", prompt(text)).prompts == [text]
    assert time.process_time() - begun_s < 3  # 10 s, where each block copies all before it


def test_reading_again_writes_the_same_bytes(read: Read, tmp_path: Path) -> None:
    content = array([prompt(f"p{number}", id=number) for number in range(50)])
    first = read("d.json.gz", content)
    before = request_file(tmp_path / "input").read_bytes()
    assert read("d.json.gz", content).entries == first.entries
    assert request_file(tmp_path / "input").read_bytes() == before


def entry_of(reading: Reading, line: int) -> Entry:
    return next(entry for entry in reading.entries if entry.line == line)


def test_an_entry_carries_what_the_queue_needs(read: Read) -> None:
    reading = read("d.json", prompt("a", id="x", model="m", context_length=9000, priority="high"))
    entry = entry_of(reading, 1)
    assert (entry.id, entry.model, entry.context_length, entry.priority) == ("x", "m", 9000, "high")
