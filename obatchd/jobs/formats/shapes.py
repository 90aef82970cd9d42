"""Requests in the shapes that programs give to lists of them: lists of texts, lists in an object, data frames."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import msgspec

from obatchd.jobs.formats.reader.fields import fields_of, quoted
from obatchd.jobs.formats.reader.said import CHAT_NAMES, TEXT_NAMES
from obatchd.jobs.formats.reader.settings import SETTINGS
from obatchd.jobs.formats.request import PASSED_NOTES, PASSED_ON
from obatchd.jobs.formats.source import ByteSource
from obatchd.jobs.formats.split import split_array
from obatchd.jobs.model import RequestRefused

_ASKED = frozenset({*TEXT_NAMES, *CHAT_NAMES, "input"})
_LABELS = frozenset({"id", "custom_id"})
_FRAME_BYTES = 4 * 1024**2  # its cells take up to twenty times that in memory
_encode = msgspec.json.Encoder().encode
_columns = msgspec.json.Decoder(dict[str, dict[str, msgspec.Raw]]).decode
_lists = msgspec.json.Decoder(dict[str, list[msgspec.Raw]]).decode


class _Split(msgspec.Struct):
    """What pandas writes with ``orient="split"``."""

    columns: list[str]
    data: list[list[msgspec.Raw]]


_split = msgspec.json.Decoder(_Split).decode


def as_request(element: bytes) -> bytes:
    """An element of a list as a request: a text is a prompt, a list is a chat."""
    if element.startswith(b'"'):
        return b'{"prompt":' + element + b"}"
    return b'{"messages":' + element + b"}" if element.startswith(b"[") else element


def requests_in(raw: bytes) -> Iterator[tuple[str, bytes]] | None:
    """(where, request) of each request in a JSON object that is none itself; None where it is no such object.

    Raises RequestRefused for a data frame that is too long to be taken apart in memory.
    """
    try:
        fields, mended = fields_of(raw)
    except (ValueError, RecursionError):
        return None
    raw = _encode(fields) if mended else raw
    notes = [f"of the whole file: {note}" for note in mended]
    if (elements := _wrapper(fields, notes)) is not None:
        return elements
    rows = _frame(raw, fields) or _split_frame(raw, fields)
    return rows and ((where, _with(row, {}, notes)) for where, row in rows)


def _frame(raw: bytes, fields: dict[str, msgspec.Raw]) -> Iterator[tuple[str, bytes]] | None:
    """Columns by row, rows by column, or a list for each column: pandas' ``to_json`` and ``to_dict``."""
    begins = {memoryview(value)[:1].tobytes() for value in fields.values()}
    if begins == {b"["} and fields.keys() & {*TEXT_NAMES}:
        return _of_lists(raw)
    cells = _decoded(_columns, raw) if begins == {b"{"} else None
    if cells is None or len({tuple(inner) for inner in cells.values()}) != 1:
        return None
    if fields.keys() & _ASKED:
        keys = list(next(iter(cells.values())))
        return ((f'row "{key}"', _encode({name: cells[name][key] for name in cells})) for key in keys)
    if next(iter(cells.values())).keys() & _ASKED:
        return (
            (f'row "{key}"', _encode(row if row.keys() & _LABELS else {"id": key, **row})) for key, row in cells.items()
        )
    return None


def _of_lists(raw: bytes) -> Iterator[tuple[str, bytes]] | None:
    lists = _decoded(_lists, raw)
    texts = next((lists[name] for name in TEXT_NAMES if name in lists), None) if lists else None
    if (
        not lists
        or not texts
        or len({len(values) for values in lists.values()}) != 1
        or not bytes(texts[0]).startswith(b'"')
    ):
        return None
    return (
        (f"row {number}", _encode({name: values[number - 1] for name, values in lists.items()}))
        for number in range(1, len(texts) + 1)
    )


def _split_frame(raw: bytes, fields: dict[str, msgspec.Raw]) -> Iterator[tuple[str, bytes]] | None:
    frame = _decoded(_split, raw) if fields.keys() >= {"columns", "data"} else None
    if frame is None:
        return None
    rows = enumerate(frame.data, 1)
    return ((f"row {number}", _encode(dict(zip(frame.columns, row, strict=False)))) for number, row in rows)


def _wrapper(fields: dict[str, msgspec.Raw], notes: list[str]) -> Iterator[tuple[str, bytes]] | None:
    """The elements of the one list of objects or texts in an object; settings beside it hold for all of them."""
    if fields.keys() & _ASKED:
        return None
    lists = {name: value for name, value in fields.items() if name not in SETTINGS and _is_list(value)}
    if len(lists) != 1:
        return None
    [(name, value)] = lists.items()
    common = {key: value for key, value in fields.items() if key in SETTINGS}
    others = [key for key in fields if key not in (name, *common)]
    notes = [f'{quoted(others)} beside "{name}" is left out', *notes] if others else notes
    elements = split_array(ByteSource(io.BytesIO(value)), len(bytes(value)))
    return (
        (f'element {element.number} of "{name}"', _with(as_request(element.raw or b""), common, notes))
        for element in elements
    )


def _is_list(value: msgspec.Raw) -> bool:
    begin = bytes(memoryview(value)[:64]).split()
    joined = b"".join(begin)
    return joined.startswith((b"[{", b'["', b"[["))


def _with(element: bytes, common: dict[str, msgspec.Raw], notes: list[str]) -> bytes:
    """An element with the settings that hold for all, where it has none of its own, and notes."""
    if not common and not notes:
        return element
    try:
        fields, _ = fields_of(element)
    except (ValueError, RecursionError):
        return element  # indexing says why it is none
    told: dict[str, Any] = {PASSED_NOTES: notes, PASSED_ON: fields.pop(PASSED_ON, {})} if notes else {}
    return _encode({**common, **fields, **told})


def _decoded(decode: Any, raw: bytes) -> Any:
    if len(raw) > _FRAME_BYTES:
        raise RequestRefused(
            "wrong_type",
            f"it may be a data frame, and has more than {_FRAME_BYTES} bytes: write a row a line into a .jsonl file, "
            'with pandas to_json(…, orient="records", lines=True)',
        )
    try:
        return decode(raw)
    except (ValueError, RecursionError):
        return None
