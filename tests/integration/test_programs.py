"""OpenAI's own client, unmodified, against the daemon: every call about files, batches and models."""

from __future__ import annotations

import asyncio
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import openai
import pytest
from daemon_support import Daemon, Document, wait_for
from openai import AsyncOpenAI, OpenAI
from openai_shapes import BATCH, ERROR_LINE, FILE, OUTPUT_LINE, PROBLEM, listed
from programs_support import CHAT, FORM, Programs, batch_file, for_all_tests, line, multipart, questions

Make = Callable[..., Daemon]
WINDOW: Any = "24h"
EXAMPLES = Path(__file__).parents[2] / "etc" / "examples"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """One daemon for all tests that leave it as it was."""
    with for_all_tests(tmp_path_factory.mktemp("programs"), simulator={"answer": {"tokens": 2}}) as found:
        yield found


@pytest.fixture
def client(programs: Programs) -> Iterator[OpenAI]:
    with programs.client() as client:
        yield client


def uploaded(client: OpenAI, content: bytes, name: str = "requests.jsonl") -> str:
    return client.files.create(file=(name, content), purpose="batch").id


def started(client: OpenAI, content: bytes, **more: Any) -> Any:
    asked = {"endpoint": CHAT, "completion_window": WINDOW, "input_file_id": uploaded(client, content), **more}
    return client.batches.create(**asked)


def documents(client: OpenAI, file: str | None) -> list[Document]:
    return [json.loads(found) for found in client.files.content(str(file)).iter_lines()] if file else []


def test_a_batch_from_its_file_to_its_answers(programs: Programs, client: OpenAI) -> None:
    content = questions(1000)
    file = client.files.create(file=("my requests.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.status) == (
        len(content),
        "my requests.jsonl",
        "batch",
        "processed",
    )
    assert file.expires_at == pytest.approx(file.created_at + 30 * 86400, abs=2)
    assert client.files.wait_for_processing(file.id) == client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", metadata={"who": "me"})
    assert (batch.endpoint, batch.input_file_id, batch.completion_window) == (CHAT, file.id, "24h")
    assert (
        batch.status in ("validating", "in_progress") and batch.expires_at is None and batch.metadata == {"who": "me"}
    )
    done = programs.until_over(batch.id)
    assert done.status == "completed" and done.errors is None and done.error_file_id is None
    assert done.request_counts is not None and done.usage is not None and done.model == "tiny"
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (1000, 1000, 0)
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 0
    times = (done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at)
    assert list(times) == sorted(time or 0 for time in times)
    output = client.files.retrieve(str(done.output_file_id))
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    with client.files.with_streaming_response.content(output.id) as streamed:
        lines = [json.loads(found) for found in streamed.iter_lines()]
    assert [found["custom_id"] for found in lines] == [f"c-{n}" for n in range(1000)]
    assert all(jsonschema.Draft202012Validator(OUTPUT_LINE).is_valid(found) for found in lines)
    raw = client.batches.with_raw_response.retrieve(batch.id)
    assert raw.headers["x-request-id"].startswith("req_") and raw.parse() == done
    job = batch.id.removeprefix("batch_")
    [shown] = [one for one in programs.d.client.get("jobs")["jobs"] if one["job"] == job]
    assert (shown["name"], shown["state"], shown["succeeded"]) == ("my requests.jsonl", "done", 1000)


def test_lines_that_fail_are_in_the_error_file_and_the_others_in_the_output(programs: Programs, client: OpenAI) -> None:
    bad = [b"{no json", line("bad-url", url="/v1/embeddings"), line("good-1"), line("bad-model", body={"model": "x"})]
    content = batch_file([line("good-0"), *bad, line("good-0")])
    done = programs.until_over(started(client, content).id)
    assert done.status == "completed" and done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (6, 2, 4)
    good, wrong = documents(client, done.output_file_id), documents(client, done.error_file_id)
    assert [found["custom_id"] for found in good] == ["good-0", "good-1"]
    codes = [found["error"]["code"] for found in wrong]
    assert codes == ["invalid_json_line", "url_mismatch", "missing_required_parameter", "duplicate_custom_id"]
    assert all(jsonschema.Draft202012Validator(ERROR_LINE).is_valid(found) for found in wrong)


def test_a_refusal_of_the_model_is_a_response_in_the_error_file(programs: Programs, client: OpenAI) -> None:
    content = batch_file([line("short"), line("long", text="word " * 9000)])
    done = programs.until_over(started(client, content).id)
    assert [found["custom_id"] for found in documents(client, done.output_file_id)] == ["short"]
    [found] = documents(client, done.error_file_id)
    assert (found["custom_id"], found["error"], found["response"]["status_code"]) == ("long", None, 400)
    assert found["response"]["body"]["error"]["code"] == "context_length_exceeded"


def test_a_batch_without_a_good_line_has_failed_and_says_why(programs: Programs, client: OpenAI) -> None:
    done = programs.until_over(started(client, batch_file([line("a", url="/v1/embeddings"), b"[]"])).id)
    assert done.status == "failed" and done.failed_at and done.output_file_id is None and done.errors is not None
    assert [(fault.line, fault.code) for fault in done.errors.data or ()] == [
        (1, "url_mismatch"),
        (2, "invalid_json_line"),
    ]
    assert len(documents(client, done.error_file_id)) == 2
    empty = programs.until_over(started(client, b"").id)
    assert empty.status == "failed" and empty.errors is not None and empty.error_file_id is None
    assert [fault.code for fault in empty.errors.data or ()] == ["empty_file"]


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf" + questions(2), questions(2).replace(b"\n", b"\r\n"), questions(2)[:-1]]
)
def test_files_as_editors_leave_them_are_read(programs: Programs, client: OpenAI, content: bytes) -> None:
    done = programs.until_over(started(client, content).id)
    assert done.status == "completed" and len(documents(client, done.output_file_id)) == 2


def test_every_page_of_a_list_comes_once(client: OpenAI) -> None:
    files = [uploaded(client, questions(1, f"p{n}")) for n in range(7)]
    batches = [client.batches.create(input_file_id=f, endpoint=CHAT, completion_window=WINDOW).id for f in files]
    listed = [batch.id for batch in client.batches.list(limit=3)]
    assert listed[:7] == batches[::-1] and len(listed) == len(set(listed))
    first = client.batches.list(limit=3)
    assert first.has_more and [batch.id for batch in first.data] == batches[:3:-1]
    for order, wanted in (("desc", files[::-1]), ("asc", files)):
        found = [file.id for file in client.files.list(limit=3, order=order, purpose="batch")]
        assert [file for file in found if file in files] == wanted
    # A list goes on behind a file that was deleted meanwhile, as programs that tidy up do it.
    for file in client.files.list(limit=2, purpose="batch"):
        if file.id in files:
            client.files.delete(file.id)
    assert not {file.id for file in client.files.list()} & set(files)
    uploaded(client, questions(1)), uploaded(client, questions(1))
    assert client.files.list(limit=1).has_more


async def test_the_client_for_asyncio_does_the_same(programs: Programs) -> None:
    async with AsyncOpenAI(base_url=programs.url, api_key=programs.key) as client:
        file = await client.files.create(
            file=b"" + questions(3), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        assert file.filename == "upload" and file.expires_at == file.created_at + 3600
        expiry: Any = {"anchor": "created_at", "seconds": 7200}
        batch = await client.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window=WINDOW, output_expires_after=expiry
        )
        while (batch := await client.batches.retrieve(batch.id)).status != "completed":
            await asyncio.sleep(0.05)
        output = await client.files.retrieve(str(batch.output_file_id))
        assert output.expires_at == output.created_at + 7200 and batch.completed_at == output.created_at
        assert [model.id async for model in client.models.list()]
        assert batch.id in [found.id async for found in client.batches.list(limit=1)]


def test_every_answer_has_its_published_shape(programs: Programs, client: OpenAI) -> None:
    good = programs.until_over(started(client, questions(2), metadata={"a": "b"}).id)
    bad = programs.until_over(started(client, b"{}\n").id)
    shapes = {
        f"/v1/files/{good.input_file_id}": FILE,
        f"/v1/files/{good.output_file_id}": FILE,
        f"/v1/batches/{good.id}": BATCH,
        f"/v1/batches/{bad.id}": BATCH,
        "/v1/files?limit=3": listed(FILE),
        "/v1/files?after=file-00000000-000000-0000": listed(FILE),
        "/v1/batches": listed(BATCH),
        "/v1/batches/batch_x": PROBLEM,
        "/v1/files?limit=x": PROBLEM,
        "/v1/nothing": PROBLEM,
    }
    for path, shape in shapes.items():
        document = programs.call("GET", path).document
        jsonschema.validate(document, shape)
        assert set(document) <= {*shape["properties"], "status_details"}, path


def test_models_are_listed_and_found_by_their_names(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert "tiny:latest" in names and client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("hf.co/foo/bar:Q4_K_M")
    assert caught.value.code == "model_not_found" and "hf.co/foo/bar:Q4_K_M" in caught.value.message


def test_deleting_a_file_spares_the_batch_that_was_made_of_it(programs: Programs, client: OpenAI) -> None:
    batch = started(client, questions(30, "kept"))
    assert client.files.delete(batch.input_file_id).deleted
    with pytest.raises(openai.NotFoundError) as gone:
        client.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window=WINDOW)
    assert gone.value.param == "input_file_id"
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(batch.input_file_id)
    done = programs.until_over(batch.id)
    assert done.status == "completed" and len(documents(client, done.output_file_id)) == 30
    assert done.input_file_id == batch.input_file_id


def test_a_deleted_output_is_nowhere(programs: Programs, client: OpenAI) -> None:
    text = "a question whose answer nobody is to find"
    done = programs.until_over(started(client, batch_file([line("one", text), b"{"])).id)
    assert client.files.content(str(done.output_file_id)).text
    job = done.id.removeprefix("batch_")
    [outbox] = programs.d.outbox.glob(f"*.{job}")
    answer = json.loads((outbox / "results.jsonl").read_bytes())["response"]["body"]["choices"][0]["message"]["content"]
    client.files.delete(str(done.output_file_id))
    left = client.batches.retrieve(done.id)
    assert left.output_file_id is None and left.error_file_id == done.error_file_id and left.status == "completed"
    with pytest.raises(openai.NotFoundError):
        client.files.content(str(done.output_file_id))
    for path in (*outbox.rglob("*"), *(programs.d.spool / "work" / "segments").iterdir()):
        assert not path.is_file() or answer.encode() not in path.read_bytes(), path
    client.files.delete(str(done.error_file_id))
    assert client.batches.retrieve(done.id).error_file_id is None
    assert programs.d.control("rm", job).returncode == 0
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve(done.id)


def test_a_batch_file_in_the_inbox_is_a_batch_too(programs: Programs, client: OpenAI) -> None:
    content = questions(4, "dropped")
    programs.d.drop("dropped.jsonl", content)
    job = programs.d.done("dropped.jsonl")
    assert f"batch_{job.id}" in [found.id for found in client.batches.list()]
    batch = programs.until_over(f"batch_{job.id}")
    assert (batch.status, batch.endpoint, batch.input_file_id) == ("completed", CHAT, f"file-{job.id}-input")
    assert client.files.content(batch.input_file_id).read() == content
    assert [found["custom_id"] for found in documents(client, batch.output_file_id)] == [
        f"dropped-{n}" for n in range(4)
    ]
    with pytest.raises(openai.ConflictError) as caught:
        client.files.delete(batch.input_file_id)
    assert f"obatchctl rm {job.id}" in caught.value.message


REFUSED: list[tuple[Document, int, str | None, str]] = [
    ({"endpoint": "/v1/images/generations"}, 400, "endpoint", "invalid_value"),
    ({"endpoint": None}, 400, "endpoint", "missing_required_parameter"),
    ({"completion_window": "soon"}, 400, "completion_window", "invalid_value"),
    ({"completion_window": 24}, 400, "completion_window", "invalid_type"),
    ({"metadata": {"a": 1}}, 400, "metadata", "invalid_type"),
    ({"metadata": {f"n{n}": "" for n in range(17)}}, 400, "metadata", "invalid_value"),
    ({"metadata": {"a" * 65: ""}}, 400, "metadata", "invalid_value"),
    ({"metadata": {"a": "v" * 513}}, 400, "metadata", "invalid_value"),
    (
        {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
        400,
        "output_expires_after.seconds",
        "invalid_value",
    ),
    ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, 400, "output_expires_after", "invalid_value"),
    ({"input_file_id": "file-20260101-000000-0000"}, 404, "input_file_id", "not_found"),
    ({"input_file_id": "file-../../etc/passwd"}, 404, "input_file_id", "not_found"),
]


@pytest.mark.parametrize(("change", "status", "param", "code"), REFUSED)
def test_a_batch_that_cannot_be_is_refused_with_its_field(
    programs: Programs, client: OpenAI, change: Document, status: int, param: str | None, code: str
) -> None:
    whole = {"input_file_id": uploaded(client, questions(1)), "endpoint": CHAT, "completion_window": "24h"} | change
    answer = programs.call("POST", "/v1/batches", {name: value for name, value in whole.items() if value is not None})
    assert (answer.status, answer.error["param"], answer.error["code"]) == (status, param, code)
    assert answer.error["type"] == "invalid_request_error"


def test_an_output_is_no_input(programs: Programs, client: OpenAI) -> None:
    done = programs.until_over(started(client, questions(1)).id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(input_file_id=str(done.output_file_id), endpoint=CHAT, completion_window=WINDOW)
    assert caught.value.param == "input_file_id"


EXPIRY = [("expires_after[seconds]", None, b"60"), ("expires_after[anchor]", None, b"created_at")]
UPLOADS: list[tuple[bytes, str, int, str | None]] = [
    (multipart(("file", "a.jsonl", b"{}")), FORM, 400, "purpose"),
    (multipart(("purpose", None, b"batch")), FORM, 400, "file"),
    (multipart(("file", "a.jsonl", b"{}"), ("purpose", None, b"assistants")), FORM, 400, "purpose"),
    (multipart(("file", "a", b"1"), ("file", "b", b"2"), ("purpose", None, b"batch")), FORM, 400, "file"),
    (multipart(*[("x", None, b"")] * 17), FORM, 400, "file"),
    (multipart(("purpose", None, b"b" * 5000), ("file", "a", b"1")), FORM, 400, "purpose"),
    (multipart(*EXPIRY, ("purpose", None, b"batch"), ("file", "a", b"1")), FORM, 400, "expires_after.seconds"),
    (multipart(("file", "a", b"1"))[:-30], FORM, 400, "file"),
    (multipart(("file", "a\x1b", b"1")), FORM, 400, "file"),
    (b"{}", "application/json", 400, "file"),
    (b"no boundary at all", "multipart/form-data", 400, "file"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "kind", "status", "param"), UPLOADS)
def test_an_upload_that_cannot_be_leaves_nothing(
    programs: Programs, body: bytes, kind: str, status: int, param: str | None
) -> None:
    before = sorted((programs.d.spool / "work" / "files").iterdir())
    answer = programs.call("POST", "/v1/files", body, Content_Type=kind)
    assert (answer.status, answer.error["param"]) == (status, param)
    assert sorted((programs.d.spool / "work" / "files").iterdir()) == before
    wait_for(lambda: not list((programs.d.spool / "work" / "uploads").iterdir()), 5)


def test_parts_come_in_any_order_and_names_lose_their_folders(programs: Programs) -> None:
    file = ("file", "../..\\evil/dir/naïve name.jsonl", questions(1))
    answer = programs.call("POST", "/v1/files", multipart(file, ("purpose", None, b"batch")), Content_Type=FORM)
    assert answer.status == 200 and answer.document["filename"] == "naïve name.jsonl"
    content = programs.call("GET", f"/v1/files/{answer.document['id']}/content", Range="bytes=0-1")
    assert (content.status, content.body) == (206, b'{"')
    assert content.headers["content-type"] == "application/jsonl"
    assert content.headers["content-disposition"].startswith("attachment;")


def test_whoever_is_on_the_socket_needs_no_key(programs: Programs) -> None:
    transport = httpx2.HTTPTransport(uds=str(programs.socket_path))
    with OpenAI(base_url="http://localhost/v1", api_key="-", http_client=httpx2.Client(transport=transport)) as client:
        file = uploaded(client, questions(1))
    with programs.client() as other:
        assert other.files.retrieve(file).bytes == len(questions(1))


def test_there_are_no_uploads_in_parts_and_no_other_route(programs: Programs, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.uploads.create(bytes=1, filename="a", mime_type="x", purpose="batch")
    assert caught.value.code == "unknown_url"
    assert programs.call("PUT", "/v1/files").status == 405
    assert programs.call("GET", "/v1/files?limit=0").error["param"] == "limit"
    assert programs.call("GET", "/v1/files?order=up").error["param"] == "order"
    assert programs.call("POST", "/v1/batches", b"{nothing").error["code"] == "invalid_json"
    assert programs.call("POST", "/v1/batches", b"[]").error["code"] == "invalid_json"


def test_unknown_ids_are_not_found(client: OpenAI) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: client.files.retrieve("file-nothing"),
        lambda: client.files.content("file-20260101-000000-0000-output"),
        lambda: client.files.delete("file-20260101-000000-0000"),
        lambda: client.batches.retrieve("batch_20260101-000000-0000"),
        lambda: client.batches.cancel("nothing"),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "not_found" and caught.value.request_id


def test_the_file_is_kept_and_the_key_is_not(programs: Programs, client: OpenAI) -> None:
    uploaded(client, questions(1))
    for path in (programs.d.spool / "work").rglob("*"):
        if path.is_file():
            assert programs.key.encode() not in path.read_bytes(), path
    assert programs.key not in programs.d.log() and Path(programs.d.config_file).exists()


# What the pages show.


def test_the_example_runs_a_batch(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = EXAMPLES / "openai_client.py"
    assert len(path.read_text().splitlines()) <= 15
    monkeypatch.setenv("OPENAI_BASE_URL", programs.url)
    monkeypatch.setenv("OPENAI_API_KEY", programs.key)
    monkeypatch.setattr("sys.argv", [str(path), str(EXAMPLES / "openai-batch.jsonl")])
    runpy.run_path(str(path), run_name="__main__")
    lines = [json.loads(one) for one in capsys.readouterr().out.splitlines()]
    assert [one["custom_id"] for one in lines] == ["greeting", "sky", "count"]
    assert lines[2]["error"]["code"] == "url_mismatch"  # it is for another endpoint


def test_what_the_page_shows_works(programs: Programs, tmp_path: Path) -> None:
    """Every block of docs/api.md in Python, each as a program of its own."""
    (tmp_path / "requests.jsonl").write_bytes(questions(2))
    variables = {
        **os.environ, "OPENAI_BASE_URL": programs.url, "OPENAI_API_KEY": programs.key,
        "OLLAMA_HOST": programs.url.removesuffix("/v1"), "OLLAMA_API_KEY": programs.key,
    }  # fmt: skip
    page = (EXAMPLES.parents[1] / "docs" / "api.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        text = block.replace("llama3.2", "tiny").replace("/run/obatchd/…/http.sock", str(programs.socket_path))
        text += "print(client.models.list().data[0].id)\n" if "uds=" in block else ""
        ran = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert ran.returncode == 0 and (ran.stdout.strip() or "batches.create" in block), ran.stderr
