"""What submit says at once: no prompt, no model, a sample that failed."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from operations_support import Desk, desk
from test_job_commands import handed, left

from obatchd.cli.obatchctl import main
from obatchd.client.control import ControlClient
from obatchd.errors import DropRefused
from obatchd.intake import first_look
from obatchd.intake.intake import Intake


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with desk(monkeypatch, tmp_path) as made:
        yield made


@pytest.fixture
async def without_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with desk(monkeypatch, tmp_path, model="") as made:
        yield made


NOTES = b'{"mrn": 7, "note": "A long text about a patient."}\n{"mrn": 8, "note": "Another one."}\n'
PROMPTS = b'{"prompt": "a"}\n{"prompt": "b"}\n'


@pytest.mark.parametrize(
    ("content", "name", "settings", "words"),
    [
        (NOTES, "notes.jsonl", {}, 'with --text-column or --template which fields .* it has the fields "mrn", "note"'),
        (NOTES, "notes.jsonl", {"text_column": "text"}, 'field "text" in it; it has "mrn", "note"'),
        (gzip.compress(NOTES), "notes.jsonl.gz", {}, 'it has the fields "mrn", "note"'),
        (b"[" + NOTES.replace(b"}\n{", b"},{") + b"]", "notes.json", {}, 'it has the fields "mrn", "note"'),
    ],
    ids=["lines", "column", "packed", "array"],
)
async def test_a_submission_in_which_no_line_has_a_prompt_is_refused_at_once(
    rig: Desk, tmp_path: Path, content: bytes, name: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(DropRefused, match=rf"{name}: none of its requests can run: there is no .*{words}") as told:
        await rig.operations.jobs.submit(handed(tmp_path, content, name=name, **settings))
    assert told.value.code == "no_prompt"
    assert rig.work.jobs == {} and left(rig) == [] and not list(rig.work.layout.failed.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        PROMPTS,
        gzip.compress(PROMPTS),
        {"a.txt": b"one", "b.txt": b"two"},
        b'{"note": "x"}\n' + PROMPTS,
        PROMPTS + b'{"broken\n',
    ],
    ids=["lines", "packed", "folder", "half", "a broken line"],
)
async def test_a_submission_for_which_nobody_names_a_model_is_refused_at_once(
    without_model: Desk, tmp_path: Path, content: Any
) -> None:
    rig, name = without_model, "drop" if isinstance(content, dict) else "drop.jsonl"
    if isinstance(content, bytes) and content[:1] != b"{":
        name += ".gz"
    with pytest.raises(DropRefused, match=r"no model is named, neither .* give --model NAME") as told:
        await rig.operations.jobs.submit(handed(tmp_path, content, name=name))
    assert told.value.code == "no_model"
    assert rig.work.jobs == {} and left(rig) == []


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        (PROMPTS, {"model": "large"}),
        (PROMPTS + b'{"prompt": "c", "model": "large"}\n', {}),
        ({"a.txt": b"one", "job.toml": b'model = "large"'}, {}),
        (b'{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "large", '
         b'"messages": [{"role": "user", "content": "a"}]}}\n', {}),
    ],
    ids=["submission", "a line", "job.toml", "batch"],
)  # fmt: skip
async def test_a_model_that_anything_names_is_enough(
    without_model: Desk, tmp_path: Path, content: Any, settings: dict[str, Any]
) -> None:
    name = "drop" if isinstance(content, dict) else "drop.jsonl"
    document = await without_model.operations.jobs.submit(handed(tmp_path, content, name=name, **settings))
    assert document.state in ("running", "publishing", "done") and (document.requests or 0) > 0


@pytest.mark.parametrize(
    "content", [b'{"note": "x"}\n{"prompt": "a"}\n', b'not JSON\n{"note": "x"}\n'], ids=["one is good", "other faults"]
)
async def test_what_is_not_wrong_in_every_line_runs_and_says_what_failed(
    rig: Desk, tmp_path: Path, content: bytes
) -> None:
    document = await rig.operations.jobs.submit(handed(tmp_path, content))
    assert document.requests == 2 and document.failed >= 1


@pytest.mark.parametrize("by", ["submission", "job.toml"])
async def test_what_comes_behind_the_requests_that_are_looked_at_is_not_known(
    without_model: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(first_look, "_LOOKED_AT", 3)
    jobs, texts = without_model.operations.jobs, {"a.txt": b"one\ntwo\nthree\n"}
    with pytest.raises(DropRefused, match="no model is named"):
        await jobs.submit(handed(tmp_path, texts, name="texts"))  # it is one prompt
    if by == "job.toml":
        texts["job.toml"] = b"lines = true"
    document = await jobs.submit(handed(tmp_path, texts, name="texts", **({} if by == "job.toml" else {"lines": True})))
    assert document.job


async def test_what_is_read_only_later_is_not_looked_at(without_model: Desk, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.jsonl", PROMPTS)
    document = await without_model.operations.jobs.submit(handed(tmp_path, packed.getvalue(), name="drop.zip"))
    assert document.job


async def test_a_look_fills_no_disk(without_model: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig, asked = without_model, list[int]()

    def full(intake: Intake, size_bytes: int) -> None:
        asked.append(size_bytes)
        raise OSError(28, "No space left on device")

    submission = handed(tmp_path, gzip.compress(PROMPTS), name="drop.jsonl.gz")
    with monkeypatch.context() as patched:
        patched.setattr(Intake, "check_space", full)
        document = await rig.operations.jobs.submit(submission)  # it is taken, and read when there is space
    assert asked and document.job


async def test_a_drop_of_the_inbox_without_a_model_is_a_job_as_before(without_model: Desk) -> None:
    live = await without_model.take("a")
    assert (await without_model.published(live))["failures"]["no_model"]["requests"] == 1


# A sample.


def sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str, *arguments: str) -> tuple[Any, list[Any]]:
    """Submit with a sample whose only request has this outcome; what was said, and the settings of each submission."""
    submitted: list[Any] = []
    outbox = tmp_path / "outbox" / "drop.20261128-101112-abcd"
    outbox.mkdir(parents=True)
    record = {"id": "1", "line": 1, "outcome": outcome, "prompt": "a", "duration_s": 1.0}
    more = (
        {"response": "yes"}
        if outcome == "succeeded"
        else {"code": "model_missing", "message": "there is no such model"}
    )
    name = "results.jsonl" if outcome == "succeeded" else "errors.jsonl"
    (outbox / name).write_text(json.dumps(record | more) + "\n")
    failures = {"model_missing": {"requests": 1, "example": "there is no such model", "advice": "name another"}}
    summary = {"job": "20261128-101112-abcd", "requests": 1, "failures": {} if outcome == "succeeded" else failures}
    (outbox / "summary.json").write_text(json.dumps(summary))
    counts = {"succeeded": 0, "failed": 0, "cancelled": 0, "expired": 0} | {outcome: 1}
    job = {"job": "20261128-101112-abcd", "name": "drop.jsonl", "state": "done", "outbox": str(outbox), "notes": []}
    job |= {"sample_of": 5, "refused_to": None, "requests": 1, "indexed": 1, "paused": False, **counts}
    job |= {"details": {"failures": summary["failures"]}}

    def submit(client: ControlClient, path: Path, settings: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        submitted.append(settings)
        return job

    monkeypatch.setattr(ControlClient, "submit", submit)
    monkeypatch.setattr(
        ControlClient, "get", lambda client, path, *names, **_: {"servers": []} if path == "status" else job
    )
    (tmp_path / "drop.jsonl").write_bytes(PROMPTS)
    command = ["submit", str(tmp_path / "drop.jsonl"), "--sample", "1", "--label", "study", *arguments]
    return CliRunner().invoke(main, command), submitted


@pytest.mark.parametrize("arguments", [(), ("--yes",), ("--yes", "--json"), ("--json",)])
def test_a_sample_that_failed_as_a_whole_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    result, submitted = sampled(tmp_path, monkeypatch, "failed", *arguments)
    assert (result.exit_code, len(submitted)) == (1, 1)
    if "--json" in arguments:
        assert json.loads(result.stdout)["jobs"][0]["failed"] == 1
    else:
        assert "1 model_missing: there is no such model\n    → name another" in result.stdout
        assert result.stderr == "No request of the sample was answered, so the file was not submitted.\n"


def test_the_whole_has_the_label_and_its_sample_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, submitted = sampled(tmp_path, monkeypatch, "succeeded", "--yes")
    assert result.exit_code == 0
    assert submitted == [{"sample": 1}, {"skip_done": "20261128-101112-abcd", "label": "study"}]


@pytest.mark.parametrize("arguments", [(), ("--yes",), ("--yes", "--json")])
@pytest.mark.parametrize("state", ["done", "refused"])
def test_one_sample_of_several_that_failed_or_was_refused_ends_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "results.jsonl").write_text(
        json.dumps({"id": "1", "line": 1, "outcome": "succeeded", "prompt": "a", "response": "yes"}) + "\n"
    )
    common = {"notes": [], "sample_of": 5, "requests": 1, "indexed": 1, "paused": False, "refused_to": None}
    common |= {"failed": 0, "cancelled": 0, "expired": 0, "succeeded": 0, "name": "x"}
    good = common | {"job": "1", "state": "done", "outbox": str(tmp_path / "good"), "succeeded": 1}
    (tmp_path / "bad").mkdir()
    bad = common | {"job": "2", "state": "done", "outbox": str(tmp_path / "bad"), "failed": 1}
    if state == "refused":
        bad |= {"state": state, "outbox": None, "refused_to": "/failed/bad", "failed": 0, "sample_of": None}
    jobs = {"good.jsonl": good, "bad.jsonl": bad}
    submitted: list[dict[str, Any]] = []

    def submit(client: ControlClient, path: Path, settings: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        submitted.append(settings)
        return jobs[path.name]

    def get(client: ControlClient, path: str, *names: str, **_: Any) -> dict[str, Any]:
        return next((job for job in jobs.values() if job["job"] in names), {"servers": []})

    monkeypatch.setattr(ControlClient, "submit", submit)
    monkeypatch.setattr(ControlClient, "get", get)
    for name in jobs:
        (tmp_path / name).write_bytes(PROMPTS)
    paths = [str(tmp_path / name) for name in jobs]
    result = CliRunner().invoke(main, ["submit", *paths, "--sample", "1", *arguments])
    assert (result.exit_code, submitted) == (1, [{"sample": 1}] * 2)
    if "--json" in arguments:
        assert [job["succeeded"] for job in json.loads(result.stdout)["jobs"]] == [1, 0]
    else:
        assert f"No request of the sample of {paths[1]} was answered, so the 2 drops were not" in result.stderr
