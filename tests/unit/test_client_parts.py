"""Parts of the Python client that need no daemon: submissions as files, answers as objects, patience, progress."""

from __future__ import annotations

import io
import json
import math
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy
import pandas
import pyarrow
import pytest
from pydantic import BaseModel

from obatchd.client import Client
from obatchd.client import progress as progress_module
from obatchd.client.answers import Answer, Results
from obatchd.client.base import typed
from obatchd.client.drops import as_drop
from obatchd.client.forms import Form
from obatchd.client.progress import Bar, Lines, Notebook, Silence, progress
from obatchd.client.settings import as_sent
from obatchd.client.steps import Patience, Retrying, Submitting, Waiting, run
from obatchd.documents.jobs import JobDocument
from obatchd.errors import ConfigError, ControlError, DaemonDownError, NotOverError, ObatchError
from obatchd.results.rows import ResultSet

JOB: dict[str, Any] = {
    "schema": 1, "job": "20261128-120000-aaaa", "name": "prompts.jsonl", "owner": 0, "state": "running",
    "model": "tiny", "accepted_at": None, "finished_at": None, "notes": [], "retry_of": None, "sample_of": None,
    "paused": False, "priority": "normal", "requests": 10, "indexed": 10, "succeeded": 4, "failed": 1,
    "cancelled": 0, "expired": 0,
    "requests_per_s": 2.5, "tokens_per_s": 120.0, "eta_s": 90.0, "outbox": "/nowhere", "refused_to": None,
}  # fmt: skip


class Point(BaseModel):
    x: int
    at: datetime | None = None


@dataclass
class Pair:
    left: str
    right: str


def written(what: Any, folder: Path, **settings: Any) -> list[Any]:
    """The lines that the daemon gets."""
    return [json.loads(line) for line in as_drop(what, settings, folder).path.read_bytes().splitlines()]


# What is submitted.


def test_texts_and_requests_become_lines(tmp_path: Path) -> None:
    assert written(["a\nb", "größe", "\ud800"], tmp_path) == [
        {"prompt": "a\nb"},
        {"prompt": "größe"},
        {"prompt": "\ud800"},
    ]
    assert "größe".encode() in (tmp_path / "prompts.jsonl").read_bytes()  # a byte counts towards the longest line
    assert written({"prompt": "one"}, tmp_path) == [{"prompt": "one"}]
    odd = {"prompt": "x", "n": numpy.int64(3), "v": numpy.array([1.5, 2]), "at": datetime(2026, 1, 2), "p": Path("/a")}
    assert written([odd], tmp_path) == [
        {"prompt": "x", "n": 3, "v": [1.5, 2.0], "at": "2026-01-02T00:00:00", "p": "/a"}
    ]


def test_prompts_are_written_as_they_come(tmp_path: Path) -> None:
    """A generator of millions is never in memory."""
    seen = 0

    def many() -> Iterator[str]:
        nonlocal seen
        for seen in range(100_000):
            yield f"prompt {seen}"

    assert len(as_drop(many(), {}, tmp_path).path.read_bytes().splitlines()) == 100_000 and seen == 99_999


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (7, "what was given is of the type int"),
        (b"bytes", "what was given is of the type bytes"),
        (["a", None], "number 2 of what was given is of the type NoneType"),
        (pandas.Series(["a", math.nan]), "number 2 of what was given is of the type float"),
        ([], "there is no prompt to submit"),
        ("no such file", "A text is taken for a path"),
        (Path("no such file"), "there is no file or folder no such file"),
    ],
)
def test_what_is_no_prompt_is_refused_with_an_example(what: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=words):
        as_drop(what, {}, tmp_path)


def test_a_place_that_takes_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ControlError, match=r"gone/.*: No such file or directory\. TMPDIR names another place"):
        Client(transport=Scripted()).submit(["a"])
    with pytest.raises(ControlError, match="No such file or directory"):
        as_drop(["a"], {}, tmp_path / "gone")


def test_the_prompts_of_a_series_are_its_texts(tmp_path: Path) -> None:
    assert written(pandas.Series(["a", "b"], index=[3, 9]), tmp_path) == [{"prompt": "a"}, {"prompt": "b"}]


@pytest.mark.parametrize(
    ("columns", "given", "found"),
    [
        (["note", "Prompt", "ID"], {}, {"text_column": "Prompt", "id_column": "ID"}),
        (["question"], {}, {"text_column": "question"}),
        (["anything"], {}, {"text_column": "anything"}),
        (["a", "text"], {"template": "{a}"}, {"template": "{a}"}),
        (["a", "text"], {"text_column": "a", "id_column": "text"}, {"text_column": "a", "id_column": "text"}),
    ],
)
def test_columns_of_a_frame_that_are_prompt_and_id(
    columns: list[str], given: dict[str, Any], found: dict[str, Any], tmp_path: Path
) -> None:
    frame = pandas.DataFrame([[f"{name} 1" for name in columns]], columns=columns)
    drop = as_drop(frame, given, tmp_path)
    assert drop.settings == found
    assert json.loads(drop.path.read_bytes()) == {name: f"{name} 1" for name in columns}
    assert as_drop(pyarrow.Table.from_pandas(frame), given, tmp_path).settings == found


def test_an_index_with_a_name_is_a_column(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"id": [7, 3], "text": ["a", "b"]}).set_index("id")
    drop = as_drop(frame, {}, tmp_path)
    assert drop.settings == {"text_column": "text", "id_column": "id"}
    assert [json.loads(line)["id"] for line in drop.path.read_bytes().splitlines()] == [7, 3]
    assert written(frame["text"], tmp_path) == [{"prompt": "a"}, {"prompt": "b"}]
    with pytest.raises(ControlError, match="text_column: there is no column nota; the columns are id, text"):
        as_drop(frame, {"text_column": "nota"}, tmp_path)


class Labelled(pandas.DataFrame):
    """A data frame of somebody else's library."""


def test_frames_are_known_by_what_they_are_and_not_by_the_names_of_their_columns(tmp_path: Path) -> None:
    odd = {"text": ["a"], "column_names": [1], "write_ndjson": [2], "to_batches": [3], "columns": [4], "index": [5]}
    for frame in (pandas.DataFrame(odd), Labelled(odd), pyarrow.table(odd)):
        drop = as_drop(frame, {}, tmp_path)
        assert drop.settings == {"text_column": "text"}
        assert json.loads(drop.path.read_bytes()) == {name: values[0] for name, values in odd.items()}
    twice = pandas.DataFrame({"text": ["a"]}, index=pandas.Index([7], name="text"))
    assert written(twice, tmp_path) == [{"text": "a"}]
    with pytest.raises(ControlError, match="the table has no columns"):
        as_drop(pandas.DataFrame(), {}, tmp_path)


def test_a_frame_of_polars_is_taken(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars", reason="polars is not among the tools of the tests")
    frame = polars.DataFrame({"id": [7, 3], "text": ["größe", None], "at": [datetime(2026, 1, 2), None]})
    drop = as_drop(frame, {}, tmp_path)
    assert drop.settings == {"text_column": "text", "id_column": "id"}
    first, second = map(json.loads, drop.path.read_bytes().splitlines())
    assert (first["text"], first["at"][:10], second["text"]) == ("größe", "2026-01-02", None)


def test_cells_keep_what_they_are(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"text": ["a", None], "n": [1, 2], "f": [0.1 + 0.2, math.nan], "l": [[1, 2], []]})
    frame["at"] = pandas.to_datetime(["2026-01-01", None])
    first, second = written(frame, tmp_path)
    assert first == {"text": "a", "n": 1, "f": 0.3, "l": [1, 2], "at": first["at"]} and first["at"][:10] == "2026-01-01"
    assert second == {"text": None, "n": 2, "f": None, "l": [], "at": None}


def test_settings_that_are_not_given_are_not_sent_and_options_go_together() -> None:
    sent = as_sent({"model": None, "temperature": 0, "options": {"top_k": 2}, "in_source": ("mrn",), "stop": ["x"]})
    assert sent == {"options": {"top_k": 2, "temperature": 0, "stop": ["x"]}, "in_source": ["mrn"]}
    assert as_sent({}) == {}
    with pytest.raises(ConfigError, match="tempature: no such setting; did you mean temperature"):
        as_sent({"tempature": 0})
    assert as_sent({"of_a_later_version": 1}) == {"of_a_later_version": 1}


# What comes back.


def test_types_are_schemas_and_make_instances() -> None:
    form = Form.of(Point)
    assert form.schema == Point.model_json_schema()
    assert form.read({"x": 1, "at": "2026-01-02T00:00:00Z"}) == Point(x=1, at=datetime(2026, 1, 2, tzinfo=UTC))
    assert Form.of(Pair).read({"left": "a", "right": "b"}) == Pair("a", "b")
    assert Form.of(list[Point]).read([{"x": 1}]) == [Point(x=1)]
    assert Form.of({"type": "object"}).read({"any": 1}) == {"any": 1}
    for wrong_type, words in (("json", 'format="json"'), (Clock, "pydantic can make no JSON Schema of it")):
        with pytest.raises(ControlError, match=words):
            Form.of(wrong_type)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^x: Input should be a valid integer.*; at: ") as wrong:
        form.read({"x": "much", "at": 3.5e99})
    assert "http" not in str(wrong.value) and "much" not in str(wrong.value)


@pytest.fixture
def outbox(tmp_path: Path) -> Callable[..., ResultSet]:
    def make(*records: dict[str, Any]) -> ResultSet:
        folder = tmp_path / "out"
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"job": "j", "name": "notes.csv", "requests": len(records)}))
        good = [record for record in records if record["outcome"] == "succeeded"]
        for name, kind in (("results.jsonl", good), ("errors.jsonl", [r for r in records if r not in good])):
            (folder / name).write_text("".join(json.dumps(record) + "\n" for record in kind))
        return ResultSet(folder)

    return make


def test_an_answer_that_does_not_fit_loses_nothing(outbox: Callable[..., ResultSet]) -> None:
    source = outbox(
        {"id": "a", "line": 1, "outcome": "succeeded", "response": '{"x": 1}', "data": {"x": 1}, "prompt": "p",
         "input": {"w": 2}},
        {"id": "b", "line": 2, "outcome": "succeeded", "response": '{"x": "one"}', "data": {"x": "one"}},
        {"id": "c", "line": 3, "outcome": "succeeded", "response": "no JSON at all"},
        {"id": "d", "line": 4, "outcome": "failed", "code": "timeout", "message": "too slow"},
        {"id": "e", "line": 5, "outcome": "expired", "code": "expired"},
        {"id": "f", "line": 6, "outcome": "succeeded", "response": 'So:\n```json\n{"x": 3}\n```'},
    )  # fmt: skip
    results: Results[Point] = Results(source, Form.of(Point), {"timeout": "wait longer"})
    a, b, c, d, e, f = list(results)
    assert (a.data, a.ok, a.prompt, a.input, a.error) == (Point(x=1), True, "p", {"w": 2}, None)
    assert f.data == Point(x=3)
    for answer, words in ((b, "x: Input should be a valid integer"), (c, "it is not JSON")):
        assert answer.data is None and answer.text and answer.outcome == "succeeded"
        assert answer.error is not None and answer.error.code == "not_valid" and words in answer.error.message
    assert d.error == ("timeout", "too slow", "wait longer") and d.text == ""
    assert e.error is not None and (e.error.code, e.error.message) == ("expired", "the request expired")
    assert [answer.id for answer in Results(source, Form.of(Point), {}, failures=True)] == ["b", "c", "d", "e"]
    assert repr(d) == "<Answer d: timeout>" and repr(a) == "<Answer a: '{\"x\": 1}'>"

    table = results.to_pandas()
    assert list(table["id"]) == ["a", "b", "c", "d", "e", "f"] and table["w"][0] == 2
    assert list(table["code"])[1:4] == ["not_valid", "not_valid", "timeout"]
    assert results.to_arrow().column("line").to_pylist() == [1, 2, 3, 4, 5, 6]
    # Without a type the data are those that the daemon has checked.
    assert [answer.data for answer in Results(source, None, {})][:3] == [{"x": 1}, {"x": "one"}, None]


def test_a_job_without_answers_yet_has_none() -> None:
    nothing: Results[Any] = Results(None, None, {})
    assert list(nothing) == [] and len(nothing.to_pandas()) == 0 and nothing.to_arrow().num_rows == 0
    assert "without answers yet" in repr(nothing)


def test_columns_with_gaps_keep_their_kind(outbox: Callable[..., ResultSet]) -> None:
    source = outbox(
        {"id": "a", "line": 1, "outcome": "succeeded", "response": "x", "response_tokens": 7, "truncated": False},
        {"id": "b", "line": 2, "outcome": "failed", "code": "timeout", "message": "m"},
        {"id": "c", "line": 3, "outcome": "succeeded", "embedding": [0.5, 1]},
    )
    table = Results[Any](source, None, {}).to_pandas()
    assert (str(table["response_tokens"].dtype), str(table["truncated"].dtype)) == ("Int64", "boolean")
    assert str(table["line"].dtype) == "int64" and table["embedding"][2] == [0.5, 1]
    assert table["response_tokens"].isna().tolist() == [False, True, True]


def test_an_answer_has_its_facts_under_plain_names() -> None:
    record = {
        "line": 3, "outcome": "succeeded", "response": "yes", "think": "hm", "truncated": True, "ungrounded": ["mrn"],
        "prompt_tokens": 5, "response_tokens": 1, "duration_s": 0.5, "model": "tiny", "server": "gpu0",
        "embedding": [1.0], "attempt_job": "j",
    }  # fmt: skip
    answer: Answer[Any] = Answer(record, None, None)
    assert (answer.id, answer.line, answer.think, answer.truncated, answer.ungrounded) == ("3", 3, "hm", True, ["mrn"])
    assert (answer.prompt_tokens, answer.response_tokens, answer.duration_s) == (5, 1, 0.5)
    assert (answer.model, answer.server, answer.embedding, answer.job) == ("tiny", "gpu0", [1.0], "j")
    assert (answer.prompt, answer.input) == (None, {})


def test_another_version_is_named_as_such() -> None:
    assert typed(JOB, JobDocument).succeeded == 4
    with pytest.raises(ControlError, match="same version of obatchd") as other:
        typed({**JOB, "succeeded": "four"}, JobDocument)
    assert other.value.code == "version"


def test_jobs_are_asked_for_since_a_time_or_so_long_ago() -> None:
    sockets = Scripted(*({"jobs": []} for _ in range(4)))
    client = Client(transport=sockets)
    now_s = time.time()
    for since in ("7d", timedelta(days=7), datetime.fromtimestamp(now_s - 7 * 86400, UTC)):
        assert client.jobs(since=since) == []
    assert all(abs(query["since"] - (now_s - 7 * 86400)) < 60 for query in sockets.queries)
    with pytest.raises(ControlError, match='such as "7d"'):
        client.jobs(since="yesterday")
    with pytest.raises(ControlError, match='such as "7d"'):
        client.jobs(since=5)  # type: ignore[arg-type]


# Waiting for a daemon.


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


DOWN, LOST = DaemonDownError("it is down"), ControlError("lost", code="handover_broken")


def test_a_daemon_that_was_there_is_waited_for_and_no_longer_than_that() -> None:
    clock, told = Clock(), list[str]()
    patience = Patience(120, told.append, clock=clock)
    for clock.now_s in (0, 60, 119):
        patience.lost(DOWN)
    assert told == ["obatchd does not answer; waiting 2 min for it to come back."]
    patience.back()
    clock.now_s = 300
    patience.lost(LOST)  # a new absence
    assert len(told) == 2
    clock.now_s = 420
    with pytest.raises(DaemonDownError):
        patience.lost(DOWN)


@pytest.mark.parametrize(
    "error",
    [
        DaemonDownError("no", code="permission"), DaemonDownError("no", code="no_spool"),
        ControlError("no", code="over_limit"), ObatchError("no"),
    ],
)  # fmt: skip
def test_what_no_restart_changes_is_not_waited_for(error: ObatchError) -> None:
    with pytest.raises(type(error)):
        Patience(120, print).lost(error)


def test_a_daemon_that_never_answered_is_not_waited_for() -> None:
    with pytest.raises(DaemonDownError):
        Patience(120, print, reached=False).lost(DOWN)
    Patience(120, lambda _: None, reached=False).lost(LOST)  # it has answered now


class Scripted:
    """A transport that answers, or raises, what stands in its script."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.asked: list[tuple[Any, ...]] = []
        self.queries: list[dict[str, Any]] = []

    def _next(self, *asked: Any) -> Any:
        self.asked.append(asked)
        found = self.script.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def get(self, path: str, *names: str, **query: Any) -> Any:
        self.queries.append(query)
        return self._next("get", *names)

    def post(self, path: str, *names: str, body: Any = None) -> Any:
        return self._next("post", *names)

    def submit(self, path: Path, settings: Any, token: str, *, again: bool) -> Any:
        return self._next(token, again)

    def outbox(self, job: Any) -> Path | None:
        return None


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    monkeypatch.setattr("obatchd.client.steps.time.sleep", lambda seconds: None)
    return Patience(120, lambda text: None)


def test_a_submission_is_sent_again_under_its_token(patience: Patience, tmp_path: Path) -> None:
    sockets = Scripted(LOST, DOWN, {"job": "j"})
    assert run(Submitting(sockets, as_drop(["a"], {}, tmp_path), patience)) == {"job": "j"}
    tokens, again = zip(*sockets.asked, strict=True)
    assert again == (False, True, True) and len(set(tokens)) == 1 and tokens[0]
    other = Scripted({"job": "k"})
    run(Submitting(other, as_drop(["a"], {}, tmp_path), patience))
    assert other.asked[0][0] != tokens[0]


def test_a_retry_is_asked_for_again_only_where_none_was_made(patience: Patience) -> None:
    made = Scripted({"retries": ["r1"]}, LOST, DOWN, {"retries": ["r1", "r2"]}, {"job": "r2"})
    assert run(Retrying(made, "j", {}, patience)) == {"job": "r2"}
    assert [each[0] for each in made.asked] == ["get", "post", "get", "get", "get"]
    lost = Scripted({}, DOWN, {}, {"job": "r1"})
    assert run(Retrying(lost, "j", {}, patience)) == {"job": "r1"}
    assert [each[0] for each in lost.asked] == ["get", "post", "get", "post"]


def test_waiting_ends_with_the_job_or_with_its_time(patience: Patience) -> None:
    over = JOB | {"state": "done"}
    shown = io.StringIO()
    assert run(Waiting(Scripted(JOB, DOWN, DOWN, JOB, over), "j", patience, Lines(shown), None)) == over
    assert shown.getvalue() == ""  # nothing for a quick job
    with pytest.raises(NotOverError, match="the work goes on"):
        run(Waiting(Scripted(JOB), "j", patience, Silence(), 0.0))


# How far a job is.


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_anew_and_reasons_stand_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "70")
    screen = Screen()
    bar = progress(True, screen)
    assert isinstance(bar, Bar)
    for reason in (None, "all servers are down (next try at 12:00:01)", "all servers are down (next try at 12:00:09)"):
        bar.show(JOB | {"held_up": reason, "name": "a\x1b[2Jb"})
    bar.close()
    first, above, last = _lines(screen.getvalue())
    assert (
        first == last == "a\N{REPLACEMENT CHARACTER}[2Jb  ████████████░░░░░░░░░░░░  5 of 10  2.5/s, 120 tokens/s, 1 min"
    )
    assert above.startswith("20261128-120000-aaaa waits: all servers are down")
    assert screen.getvalue().endswith("\n")


def _lines(drawn: str) -> list[str]:
    return [line for line in drawn.replace("\r\x1b[K", "\n").splitlines() if line]


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, clock = io.StringIO(), Clock()
    monkeypatch.setattr(progress_module.time, "monotonic", clock)
    lines = progress(True, stream)
    for clock.now_s in (1, 29, 31, 40, 62):
        lines.show(JOB | {"requests": None, "indexed": 7})
    assert (
        stream.getvalue().splitlines()
        == ["20261128-120000-aaaa  5 of 7 or more  2.5/s, 120 tokens/s, 1 min 30 s left, 1 failed"] * 2
    )
    assert isinstance(progress(False, stream), Silence)


def test_a_notebook_gets_a_bar_of_html(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kernel of Jupyter shows it: one output of the cell, which is updated."""
    shown: list[dict[str, str]] = []
    handle = types.SimpleNamespace(update=lambda bundle, raw: shown.append(bundle))

    def display(bundle: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        shown.append(bundle)
        return handle

    kernel = types.SimpleNamespace(kernel=object())
    ipython = types.SimpleNamespace(get_ipython=lambda: kernel)
    monkeypatch.setitem(sys.modules, "IPython", ipython)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))  # type: ignore[arg-type]
    bar = progress(True, Screen())
    assert isinstance(bar, Notebook)
    bar.show(JOB | {"label": "<b>"})
    bar.show(JOB | {"requests": None})
    assert shown[0]["text/html"].startswith('<progress value="5" max="10"></progress> &lt;b&gt;  5 of 10')
    assert shown[1]["text/html"].startswith("<progress></progress> prompts.jsonl  5 of 10 or more")
    assert shown[0]["text/plain"].startswith("<b>  5 of 10")
    kernel.__dict__.clear()  # a shell of IPython in a terminal has no kernel
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress(True, Screen()), Bar)
