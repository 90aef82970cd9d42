"""A request that is asked again with other settings: those that its own line brings give way to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from obatchd.jobs.formats.reader.batch import envelope
from obatchd.jobs.formats.reader.fields import Fields, fields_of
from obatchd.jobs.formats.reader.settings import KNOWN, setting_in
from obatchd.jobs.formats.request import is_of_responses

_encode = msgspec.json.Encoder().encode
_OF_SYSTEM = ("system", "developer")  # roles of messages
_LIMITS = {"context_length": "num_ctx", "max_response_tokens": "num_predict"}


def with_changes(raw: bytes, changes: Mapping[str, Any]) -> bytes:
    """The request in ``raw``, one line of a request file, for a job that has ``changes`` among its settings.

    A model takes the place of the line's own. Other settings of the line that the changes name are left out, so that
    the job's count. All else keeps its bytes, and a line without any of them is the same line.

    Args:
        changes: settings by their names in a job.toml.
    """
    try:
        fields = fields_of(raw)[0]
        body = envelope(fields)
        inside = fields_of(bytes(fields[body]))[0] if body else fields
        responses = body is not None or is_of_responses(Fields(fields, []))
        changed = _changed(Fields(inside, [], strict=body is not None), changes, responses=responses)
    except (ValueError, RecursionError):
        return raw  # it was run, so it is none of these; if it is, its reader says what is wrong
    if changed == inside:
        return raw
    return _encode({**fields, body: changed} if body else changed)


def _changed(fields: Fields, changes: Mapping[str, Any], *, responses: bool) -> dict[str, msgspec.Raw]:
    options = set(changes.get("options", ()))
    targets = {{"system_message": "system"}.get(name, name) for name in changes} - {"options"}
    for limit, option in _LIMITS.items():  # each is the other by another name
        if limit in changes or option in options:
            targets.add(limit)
            options.add(option)
    kept = dict(fields.raw)
    for name in kept.keys() & KNOWN:
        target, value = setting_in(fields, name)
        if value is None:
            continue
        if target == "model" and "model" in changes:
            kept[name] = _raw(changes["model"])
        elif target in targets:
            del kept[name]
        elif target == "options" and options & value.keys():
            del kept[name]
            if rest := {option: setting for option, setting in value.items() if option not in options}:
                kept[name] = _raw(rest)
    if "system" in targets:
        _drop_system(kept, fields, responses=responses)
    if "format" in targets and responses and isinstance(text := fields.peek("text"), dict) and "format" in text:
        kept["text"] = _raw({key: value for key, value in text.items() if key != "format"})
    return kept


def _drop_system(kept: dict[str, msgspec.Raw], fields: Fields, *, responses: bool) -> None:
    if responses:
        kept.pop("instructions", None)
    messages = fields.peek("messages")
    if isinstance(messages, list) and any(map(_is_of_system, messages)):
        kept["messages"] = _raw([message for message in messages if not _is_of_system(message)])


def _is_of_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in _OF_SYSTEM


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))
