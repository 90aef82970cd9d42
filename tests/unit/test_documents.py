"""The types of the public documents say what was recorded of a whole daemon: the same fields, order and types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from document_shapes import ADDED, Shape, is_later, recorded

from obatchd.control.answer import answer
from obatchd.documents import Document, alarms, answers, gpus, jobs, models, status
from obatchd.documents.answers import ErrorDocument
from obatchd.documents.burnin import report as burnin
from obatchd.documents.gpus import GpuDetails, GpuEntry
from obatchd.documents.jobs import JobDocument, Summary
from obatchd.documents.status import ServerEntry, Status

# By the beginning of the state, the longest first; what is not here is a job or a daemon's status.
TYPES: dict[str, dict[str, Any]] = {
    "idle": {
        "GET /healthz": answers.Alive,
        "GET /readyz": answers.Readiness,
        "GET /v1/burnin": burnin.BurninRuns,
        "GET /v1/gpu-events": gpus.GpuEvents,
        "GET /v1/gpus": gpus.Gpus,
        "GET /v1/gpus/0": GpuDetails,
        "GET /v1/jobs": jobs.Jobs,
        "GET /v1/models": models.Models,
        "GET /v1/ping": answers.Ping,
        "GET /v1/servers": status.Servers,
        "POST /v1/drain": answers.HostState,
        "POST /v1/pause": answers.Paused,
        "POST /v1/reload": answers.Reloaded,
        "POST /v1/resume": answers.Paused,
        "POST /v1/undrain": answers.HostState,
        "a line of a server's log": answers.LogLine,
        "bad request": ErrorDocument,
        "no such route": ErrorDocument,
        "not found": ErrorDocument,
        "server action": ServerEntry,
        "status": Status,
    },
    "jobs": {
        "GET /v1/jobs": jobs.Jobs,
        "alarm disk_low": alarms.DiskLow,
        "alarm job_done": alarms.JobDone,
        "job": JobDocument,
        "job that is removed": answers.Removed,
        "jobs that are refused": jobs.Jobs,
        "retry": JobDocument,
        "status": Status,
        "status.json": JobDocument,
        "submission": JobDocument,
        "summary.json": Summary,
    },
    "models": {
        "GET /v1/models": models.Models,
        "refused pull": None,  # progress, and an error at the end
        "removed": answers.Removed,
        "status": Status,
        "steps of a pull": list[models.PullProgress],
    },
    "gpus": {
        "alarm quarantine": alarms.GpuQuarantined,
        "events": gpus.GpuEvents,
        "gpu": GpuDetails,
        "gpus in quarantine": gpus.Gpus,
        "lend": GpuEntry,
        "no such gpu": ErrorDocument,
        "quarantine": GpuEntry,
        "release": gpus.Released,
        "status": Status,
        "take back": GpuEntry,
    },
    "burnin": {
        "a run that cannot be begun": ErrorDocument,
        "alarm burn_in_finished": alarms.BurninFinished,
        "daemon while it runs": Status,
        "list": burnin.BurninRuns,
        "no run": ErrorDocument,
        "nothing to stop": ErrorDocument,
        "report": burnin.BurninReport,
        "servers while it runs": status.Servers,
        "start": burnin.BurninStatus,
        "status": burnin.BurninStatus,
        "stop": burnin.BurninHead,
    },
    "remote": {
        "GET /v1/gpus": gpus.Gpus,
        "obatchctl submit": None,  # made by obatchctl
        "status": Status,
        "summary.json": Summary,
    },
}
_OF_FIELDS = {"schema": 1, "trouble": ""}  # where a type knows the value itself
_SAMPLES = {"string": "text", "integer": 7, "number": 1.5, "boolean": True, "null": None}
_ALARM_HEAD = ("schema", "kind", "at", "host", "text")


def samples(shape: Shape) -> Iterator[Any]:
    """Values of a shape; between them they have every kind that was seen anywhere in it."""
    for turn in range(4):
        yield _sample(shape, turn)


def _sample(shape: Shape, turn: int) -> Any:
    kind, inner = list(shape.items())[turn % len(shape)]
    if kind == "list":
        return [_sample(inner, each) for each in range(turn, turn + 3)] if inner else []
    if kind == "map":
        return {"name": _sample(inner, turn)} if inner else {}
    if inner is not None:
        return {field: _OF_FIELDS.get(field, _sample(inner[field], turn)) for field in kind}
    return _SAMPLES[kind]


def type_of(family: str, state: str) -> Any:
    known = TYPES[family]
    return known[max((begin for begin in known if state.startswith(begin)), key=len)]


def told(sample: Any, kind: Any) -> Any:
    """Without what the answer, the line or the alarm puts in front."""
    if isinstance(sample, list):
        return [told(each, kind.__args__[0]) for each in sample]
    drop = _ALARM_HEAD if issubclass(kind, alarms.Alarm) else () if issubclass(kind, Document) else ("schema",)
    return {field: value for field, value in sample.items() if field not in drop}


def _without_later(value: Any, home: str = "") -> Any:
    if isinstance(value, list):
        return [_without_later(each, home) for each in value]
    if isinstance(value, dict):
        return {name: _without_later(inner, name) for name, inner in value.items() if not is_later(name, home)}
    return value


@pytest.mark.parametrize(
    ("family", "state"), [(family, state) for family in TYPES for state in recorded(family) if type_of(family, state)]
)
def test_the_type_of_a_document_has_what_was_recorded(family: str, state: str) -> None:
    kind = type_of(family, state)
    added = {path.rpartition(".")[2]: [] for path in ADDED if path.startswith(f"{family}: {state}.")}
    needed = {name: value for name, value in added.items() if name not in ("cancelled", "expired")}  # these may lack
    for sample in samples(recorded(family)[state]):
        given = told(sample, kind)
        read = msgspec.convert(given | needed if needed else given, kind, strict=True)
        written = _without_later(msgspec.to_builtins(read))
        assert json.dumps({k: v for k, v in written.items() if k not in added} if added else written) == json.dumps(
            given
        )


def test_an_answer_has_the_number_of_the_schema_first_and_once() -> None:
    named = answers.Removed("caf\xe9")
    assert answer(named).body == '{"schema":1,"removed":"café"}'.encode()
    assert answer(status.Servers([])).content_type == "application/json"


def test_a_name_that_is_not_utf_8_is_answered_as_python_has_it() -> None:
    body = answer(answers.Removed("\udcff")).body
    assert json.loads(body) == {"schema": 1, "removed": "\udcff"}
