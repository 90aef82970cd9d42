"""The fields of a batch that a program asks for, checked as OpenAI's API checks them."""

from __future__ import annotations

import re
import time
from typing import Any

from obatchd.control.programs import BatchAsked
from obatchd.errors import ApiError
from obatchd.jobs.formats.reader.batch import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from obatchd.jobs.store import BatchRow

ENDPOINTS = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES)
_LABEL_WINDOW = "24h"  # the only one of that API
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([hd])")
_WINDOW_S = {"h": 3600, "d": 86400}
# https://platform.openai.com/docs/api-reference/batch/create
_METADATA_PAIRS, _NAME_CHARACTERS, _VALUE_CHARACTERS = 16, 64, 512
_LEAST_KEPT_S, _MOST_KEPT_S = 3600, 2_592_000
_KEY_CHARACTERS = 255


def terms_of(owner: int, asked: BatchAsked) -> BatchRow:
    """The terms, without the id of a job; raises ApiError, with the field that is wrong."""
    fields = asked.fields
    endpoint, window = _text(fields, "endpoint"), _text(fields, "completion_window")
    if endpoint not in ENDPOINTS:
        raise ApiError(f"endpoint must be one of {', '.join(ENDPOINTS)}, not {endpoint!r}", param="endpoint")
    if not _WINDOW.fullmatch(window):
        words = f"completion_window must be {_LABEL_WINDOW!r}, or hours or days such as '48h' or '7d', not {window!r}"
        raise ApiError(words, param="completion_window")
    if asked.idempotency_key is not None and not 0 < len(asked.idempotency_key) <= _KEY_CHARACTERS:
        raise ApiError(f"Idempotency-Key must have 1 to {_KEY_CHARACTERS} characters", param="Idempotency-Key")
    return BatchRow(
        job="",
        owner=owner,
        input_file=_text(fields, "input_file_id"),
        endpoint=endpoint,
        completion_window=window,
        metadata=_metadata(fields.get("metadata")),
        keep_output_s=kept_s(fields.get("output_expires_after"), "output_expires_after"),
        created_s=time.time(),
        idempotency_key=asked.idempotency_key,
    )


def deadline_s(window: str, *, enforced: bool) -> float | None:
    """The deadline of a batch, in seconds after its acceptance; None: the one that any job has."""
    if window == _LABEL_WINDOW and not enforced:
        return None
    match = _WINDOW.fullmatch(window)
    assert match is not None
    return float(int(match[1]) * _WINDOW_S[match[2]])


def kept_s(value: Any, param: str) -> int | None:
    """How long a file is to be kept, from the object that says so; raises ApiError where it says nothing of use."""
    if value is None:
        return None
    seconds = value.get("seconds") if isinstance(value, dict) else None
    if not isinstance(seconds, int) or isinstance(seconds, bool) or value.get("anchor") != "created_at":
        raise ApiError(f'{param} must be {{"anchor": "created_at", "seconds": N}}', param=param)
    if not _LEAST_KEPT_S <= seconds <= _MOST_KEPT_S:
        words = f"{param}.seconds must be {_LEAST_KEPT_S} to {_MOST_KEPT_S}, an hour to 30 days"
        raise ApiError(words, param=f"{param}.seconds")
    return seconds


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise ApiError(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
    if not isinstance(value, str) or not value:
        raise ApiError(f"{name} must be a text", code="invalid_type", param=name)
    return value


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ApiError("metadata must be an object of texts", code="invalid_type", param="metadata")
    if len(value) > _METADATA_PAIRS:
        raise ApiError(f"metadata may have {_METADATA_PAIRS} pairs, not {len(value)}", param="metadata")
    for name, text in value.items():
        if len(name) > _NAME_CHARACTERS or len(text) > _VALUE_CHARACTERS:
            most = f"a name may have {_NAME_CHARACTERS} characters, a value {_VALUE_CHARACTERS}"
            raise ApiError(f"metadata: {most}", param="metadata")
    return value
