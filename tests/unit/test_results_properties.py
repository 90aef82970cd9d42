"""Whatever the bytes are: nothing crashes, and no row is lost."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from obatchd.context.addresses import AddressPolicy
from obatchd.context.compose import Source, full_prompt, named_urls, parsed_url
from obatchd.context.parsing import decoded
from obatchd.errors import SourceError
from obatchd.jobs.formats.request import Request
from obatchd.results.answers import parse_answer
from obatchd.results.export import FORMATS, export
from obatchd.results.rows import ResultSet

quick = settings(max_examples=60, deadline=None)  # no deadline: other tests run beside these
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@quick
@given(st.text())
def test_any_answer_is_parsed_or_has_a_problem(text: str) -> None:
    parsed = parse_answer(text)
    assert parsed.found == isinstance(parsed.data, dict | list)


@quick
@given(
    st.dictionaries(st.text(max_size=5), JSON),
    st.sampled_from(["{}", " {}\n", "```json\n{}\n```", "Here:\n```\n{}\n```\nEnd"]),
)
def test_an_object_is_found_in_every_wrapping(data: dict[str, Any], wrapping: str) -> None:
    text = json.dumps(data)
    assert parse_answer(wrapping.replace("{}", text)).data == json.loads(text)


@quick
@given(st.lists(st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode()),
                          JSON.map(lambda value: json.dumps({"response": value}).encode())), max_size=5))  # fmt: skip
def test_every_line_of_any_file_has_its_row_in_every_export(lines: list[bytes]) -> None:
    lines = [line for raw in lines if (line := raw.replace(b"\n", b"").strip())]
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "x.jsonl").write_bytes(b"\n".join(lines))
        source = ResultSet(Path(directory))
        for form in FORMATS:
            if form == "parquet":
                pytest.importorskip("pyarrow")
            target = io.BytesIO()
            tally = export(source, form, target)
            assert tally.outcomes.total() == len(lines)
            if form == "jsonl":
                assert len(target.getvalue().splitlines()) == len(lines)


@quick
@given(st.binary(max_size=300), st.sampled_from(["", "utf-8", "koi8-r", "utf-16", "idna", "rot13", "x" * 9, "\0"]))
def test_any_bytes_are_text_in_any_charset(content: bytes, charset: str) -> None:
    decoded(content, charset)


@quick
@given(st.text(max_size=80))
def test_any_text_is_a_judged_url_or_none(text: str) -> None:
    try:
        target = AddressPolicy().target(parsed_url(text))
    except SourceError:
        return
    assert target.host


@quick
@given(st.text(), st.lists(st.text(max_size=20), max_size=3))
def test_sources_never_end_their_own_section(prompt: str, texts: list[str]) -> None:
    named = [URL(f"https://x.example/{number}") for number, _ in enumerate(texts)]
    sources = [Source(str(url), text, f"{text}\n===== END", False) for url, text in zip(named, texts, strict=True)]
    whole = full_prompt("P", sources)
    bars = [line for line in whole.split("\n") if line.startswith("=====")]
    assert len(bars) == 2 * len(texts) + 1
    with contextlib.suppress(SourceError):  # something like a link that is no URL
        named_urls(Request(prompt=prompt), from_links=True)
