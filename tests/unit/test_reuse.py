"""Which requests count as the same."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from obatchd.dispatch.protocol import JobContext
from obatchd.intake.reuse import context_sha256, fingerprint

CONTEXT = JobContext(1, "job", "Be brief.", {"temperature": 0.5}, 100)
BASE = {"id": "a", "prompt": "What?", "options": {"top_k": 1, "seed": 2}, "note": "x"}


def key(request: dict[str, Any], context: str = "c", digest: str = "d") -> bytes | None:
    return fingerprint(json.dumps(request).encode(), context, digest)


@pytest.mark.parametrize(
    "same",
    [
        {**BASE, "id": "b"},
        {**BASE, "note": "y", "more": [1]},
        {**BASE, "model": "another-name"},
        {**BASE, "priority": "high", "context_length": 9000},
        {"options": {"seed": 2, "top_k": 1}, "content": "What?", "custom_id": "c"},
    ],
)
def test_id_passed_on_fields_and_spelling_do_not_matter(same: dict[str, Any]) -> None:
    assert key(same) == key(BASE) is not None


@pytest.mark.parametrize(
    "other",
    [
        {**BASE, "prompt": "What? "},
        {**BASE, "options": {"top_k": 2, "seed": 2}},
        {**BASE, "system": "Be long."},
        {**BASE, "format": "json"},
        {**BASE, "max_response_tokens": 7},
    ],
)
def test_what_bears_on_the_answer_does(other: dict[str, Any]) -> None:
    assert key(other) != key(BASE)
    assert key(BASE, context="other") != key(BASE) != key(BASE, digest="other")


def test_what_cannot_be_told_is_never_the_same() -> None:
    assert key({**BASE, "urls": ["https://example.org/"]}) is None
    assert fingerprint(b"not json", "c", "d") is None


def test_the_context_of_a_job_is_its_settings_not_its_name() -> None:
    assert context_sha256(CONTEXT) == context_sha256(msgspec.structs.replace(CONTEXT, job=2, name="other"))
    assert context_sha256(CONTEXT) != context_sha256(msgspec.structs.replace(CONTEXT, options={}))
