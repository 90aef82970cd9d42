"""Rows of results: from the outbox of a job, from a file, or from a directory of response files made by anything."""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from obatchd.errors import NotFoundError, ResultsError
from obatchd.words import not_json

Record = dict[str, Any]

_OUTBOX_FILES = ("summary.json", "status.json")
_WHOLE_FILES = ("results.jsonl", "errors.jsonl")
_LINES, _TEXT = (".jsonl", ".ndjson"), (".txt", ".md")  # endings of files with a response a line, and of plain text
_ANSWER_KEYS = ("response", "message", "choices", "error", "code", "data", "embedding", "embeddings")
_OUR_BATCH_LINE = re.compile(
    r"batch_req_.+-([0-9]{1,10})(?:#([0-9]{1,3}))?"
)  # the id that spool.batch_lines gives to a line of a job
_FILE_LIMIT_BYTES = 256 * 1024**2  # of one response file; the lines of a .jsonl are read one by one


class Row(NamedTuple):
    """One result. ``record`` has the names of our ``results.jsonl``, whatever the source calls them."""

    record: Record
    file: str = ""  # the name it was read from, in a directory that is no outbox
    broken: bool = False  # what stands there is no result

    @property
    def succeeded(self) -> bool:
        return bool(self.record.get("outcome") == "succeeded")  # a comparison's rows have none

    @property
    def name(self) -> str:
        """The name of the row in a list."""
        return str(self.record.get("id") or self.file or self.record.get("line"))

    @property
    def choices(self) -> list[Record]:
        """The answers to a request that asked for several; what other programs call choices is none of them."""
        found = self.record.get("choices") if self.succeeded else None
        return [one for one in found if isinstance(one, dict) and "response" in one] if isinstance(found, list) else []

    @property
    def failure(self) -> str:
        """What happened instead of an answer."""
        return f"{str(self.record['outcome']).upper()} {self.record.get('code', '')}: {self.record.get('message', '')}"


class ResultSet:
    """Results that can be read more than once."""

    retries: Sequence[ResultSet] = ()  # of the job, where their rows are among these

    def __init__(self, path: Path) -> None:
        """Raises: NotFoundError: there is nothing at ``path``. ResultsError: it cannot be read."""
        if not path.exists():
            raise NotFoundError(f"{path}: there is no such file or directory")
        self.path = _place_of(path) if path.is_dir() else path  # directory or file
        self._outbox = self.path.is_dir() and _is_outbox(self.path)
        summary, status = (read_object(self.path / name) if self._outbox else {} for name in _OUTBOX_FILES)
        known = summary or status
        self.job = str(known.get("job") or "")  # its id, where it is an outbox
        asked = known.get("requests")  # where that is not known, the rows are all there is
        self.asked = asked if isinstance(asked, int) else None
        self.title = str(known.get("label") or known.get("name") or self.job or self.path.name)  # what people call it
        self.settings = _object_in(known, "settings")  # that its requests shared, where they are known
        form = self.settings.get("format")
        self.json_asked = None if form is None else bool(form)  # whether the job asked for JSON; None: not known
        self.complete = bool(summary) or not self._outbox  # the job is over

    def rows(self) -> Iterator[Row]:
        """Every row: of a job in the order of its requests, of a directory in the order of its file names."""
        if not self.path.is_dir():
            return _file_rows(self.path)
        if not self._outbox:
            return _directory_rows(self.path)
        whole = (self.path / name for name in _WHOLE_FILES)
        streams: list[Iterable[Row]] = [_lines(path) for path in whole if path.exists()]
        responses = self.path / "responses"
        if not streams and responses.is_dir():  # the answers so far of a job that is still running
            streams = [sorted((row for row in _directory_rows(responses) if row.file.endswith(".json")), key=line_of)]
        return (row._replace(file="") for row in heapq.merge(*streams, key=line_of))

    def has_responses(self) -> bool:
        """Whether there is any: a job in an outbox may still get some, other files and directories have them or not."""
        return self._outbox or any(not row.broken for row in self.rows())

    def notes(self) -> list[str]:
        """Notes for people at the end, once the rows were read."""
        return []


def _directory_rows(directory: Path) -> Iterator[Row]:
    try:
        files = [file for file in directory.iterdir() if not file.name.startswith(".") and file.is_file()]
    except OSError as error:
        raise ResultsError(f"{directory} cannot be read: {error.strerror}") from None
    told = {file.stem for file in files if file.suffix.lower() in (".json", ".jsonl")}
    for file in sorted(files, key=lambda file: _natural(file.name)):
        # The text of a response that is there as JSON is not one more response.
        if file.suffix.lower() in (".json", *_LINES) or (file.suffix.lower() in _TEXT and file.stem not in told):
            yield from _file_rows(file)


def _place_of(directory: Path) -> Path:
    """The outbox that a directory is part of, or has as the only thing in it (``submit --output-dir``), else itself."""
    if directory.name == "responses" and _is_outbox(directory.parent):
        return directory.parent
    with contextlib.suppress(OSError):
        inside = [path for path in directory.iterdir() if not path.name.startswith(".")]
        outboxes = [path for path in inside if path.is_dir() and _is_outbox(path)]
        if outboxes and not any(path.is_file() for path in inside):
            if len(outboxes) == 1:
                return outboxes[0]
            names = ", ".join(sorted(path.name for path in outboxes))
            raise ResultsError(f"{directory} has the results of several jobs; name one of {names}", code="ambiguous")
    return directory


def _is_outbox(directory: Path) -> bool:
    return any("job" in read_object(directory / name) for name in _OUTBOX_FILES if (directory / name).is_file())


def read_object(path: Path) -> Record:
    """The JSON object in a file; an empty one where there is none, or nothing to read."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"([0-9]{1,18})", name)
    return [(0, int(part), "") if place % 2 else (1, 0, part) for place, part in enumerate(parts)]


def line_of(row: Row) -> tuple[int, int]:
    """The place of a row in its job: its line, and the number of its answer where prompts are repeated."""
    line, number = row.record.get("line"), row.record.get("repeat")
    return line if isinstance(line, int) else 0, number if isinstance(number, int) else 0


def _file_rows(path: Path) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix in _LINES:
        yield from _lines(path)
        return
    try:
        if path.stat().st_size > _FILE_LIMIT_BYTES:
            yield _broken(path, "too_large", f"it has more than {_FILE_LIMIT_BYTES} bytes")
        elif suffix in _TEXT:
            answer = path.read_bytes().decode("utf-8", "replace")
            yield Row({"id": path.stem, "outcome": "succeeded", "response": answer}, path.name)
        elif isinstance(document := _parsed(path.read_bytes()), list):
            for position, element in enumerate(document, start=1):
                yield _row(element, path, f"{path.stem}#{position}")
        else:
            yield _row(document, path, path.stem)
    except OSError as error:
        yield _broken(path, "unreadable", f"it cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        yield _broken(path, "bad_json", not_json(error))


def _parsed(content: bytes) -> Any:
    """JSON, in which a number that JSON or we cannot hold becomes its text, so that it is passed on as it was."""
    return json.loads(
        content, parse_constant=str, parse_float=lambda text: text if math.isinf(float(text)) else float(text)
    )


def _lines(path: Path) -> Iterator[Row]:
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield _row(_parsed(line), path, f"{path.stem}#{number}")
                except (ValueError, RecursionError) as error:
                    yield _broken(path, "bad_json", f"line {number}: {not_json(error)}", f"{path.stem}#{number}")
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}") from None


def _broken(path: Path, code: str, message: str, name: str = "") -> Row:
    record = {"id": name or path.stem, "outcome": "failed", "code": code, "message": f"{path.name}: {message}"}
    return Row(record, path.name, broken=True)


def _row(element: Any, path: Path, name: str) -> Row:
    if not isinstance(element, dict) or not any(key in element for key in _ANSWER_KEYS):
        return _broken(path, "no_response", 'there is no "response" in it', name)
    if "outcome" in element:
        return Row(element, path.name)
    if "custom_id" in element:
        return Row(_of_batch_line(element), path.name)
    record: Record = {"id": name, "outcome": "succeeded", **element}
    if "response" not in element:
        record |= _of_api(element)
    elif not isinstance(element["response"], str):  # somebody has parsed it already
        record |= {"data": element["response"], "response": json.dumps(element["response"], ensure_ascii=False)}
    return Row(record, path.name)


def _object_in(record: Record, key: str) -> Record:
    return record[key] if isinstance(record.get(key), dict) else {}


def _of_batch_line(line: Record) -> Record:
    """A line of an output or error file of OpenAI's batch API."""
    body = _object_in(_object_in(line, "response"), "body")
    record: Record = {"id": str(line["custom_id"]), **_of_api(body)}
    if ours := _OUR_BATCH_LINE.fullmatch(str(line.get("id"))):
        record |= {"line": int(ours[1])} | ({"repeat": int(ours[2])} if ours[2] else {})
    error = line.get("error") or body.get("error")
    if isinstance(error, dict):
        code = str(error.get("code") or error.get("type") or "failed")
        record |= {"outcome": "failed", "code": code, "message": str(error.get("message", ""))}
    return record


def _of_api(body: Record) -> Record:
    """The answer in a response body of Ollama's or OpenAI's API."""
    record: Record = {"outcome": "succeeded"}
    if isinstance(body.get("error"), str):
        return {"outcome": "failed", "code": "error", "message": body["error"]}
    message = body.get("message")
    choices = body.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        found = [choice for choice in choices if isinstance(choice, dict)]
        messages = [_object_in(choice, "message") or {"content": choice.get("text")} for choice in found]
        message = messages[0]
        if len(messages) > 1:
            record["choices"] = [{"index": index, **_said(message)} for index, message in enumerate(messages)]
    if isinstance(body.get("response"), str):
        message = {**body, "content": body["response"]}
    elif isinstance(body.get("output"), list):
        message = _of_items([item for item in body["output"] if isinstance(item, dict)])
    if isinstance(message, dict):
        record |= _said(message)
    if isinstance(body.get("embeddings"), list):
        record["embeddings"] = body["embeddings"]
    data = body.get("data")
    if isinstance(data, list) and data and isinstance(data[0], dict) and "embedding" in data[0]:
        record["embeddings"] = [vector.get("embedding") for vector in data if isinstance(vector, dict)]
    if isinstance(body.get("model"), str):
        record["model"] = body["model"]
    return record


def _said(message: Record) -> Record:
    """The text of a message, and its reasoning."""
    thinking = message.get("thinking") or message.get("reasoning")
    return {"response": str(message.get("content") or ""), **({"think": thinking} if thinking else {})}


def _of_items(items: list[Record]) -> Record:
    """The texts in the output of OpenAI's Responses API."""
    texts: dict[str, list[str]] = {"message": [], "reasoning": []}
    for item in items:
        for part in item.get("content") or item.get("summary") or ():
            if item.get("type") in texts and isinstance(part, dict):
                texts[item["type"]].append(str(part.get("text") or ""))
    return {"content": "\n".join(texts["message"]), "reasoning": "\n".join(texts["reasoning"])}
