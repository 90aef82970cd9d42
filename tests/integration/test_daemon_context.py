"""Sources in front of prompts, in the running daemon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemon_support import Daemon, digest, jsonl, wait_for

pytestmark = pytest.mark.over_channel

Start = Callable[..., Daemon]
PAGE = (
    "<html><head><title>{0}</title></head><body><nav>Menu</nav><article><h1>{0}</h1><p>The {0} is a river, and this is "
    "a paragraph that is long enough to be taken for the main text of this page about rivers.</p></article></body>"
)


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Pages)
        name = self.path.removeprefix("/")
        if name == "slow":
            server.released.wait(30)
        if name == "out":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        kind, body = ("application/pdf", server.pdf) if name == "bomb" else ("text/html", PAGE.format(name).encode())
        self.send_response(404 if name == "gone" else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class Pages(ThreadingHTTPServer):
    """A page about each river; ``slow`` waits, ``gone`` is missing, ``out`` leads away, ``bomb`` eats memory."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pages)
        self.released = threading.Event()
        self.pdf = _bomb(600 * 1024**2)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _bomb(size_bytes: int) -> bytes:
    """A PDF whose one page unpacks to so many bytes, by two packings on top of each other."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1024**2)) for _ in range(size_bytes // 1024**2)) + packer.flush()
    stream = zlib.compress(packed, 9)
    head = b"%%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    head = head.replace(b"%%", b"%") + b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R>>endobj\n"
    body = b"4 0 obj<</Length %d/Filter[/FlateDecode/FlateDecode]>>stream\n%s\nendstream endobj\n" % (
        len(stream),
        stream,
    )
    return head + body + b"trailer<</Size 5/Root 1 0 R>>\n%%EOF"


@pytest.fixture
def pages() -> Iterator[Pages]:
    server = Pages()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def config(pages: Pages, **context: Any) -> dict[str, Any]:
    opened = {"enabled": True, "allow": [f"127.0.0.1:{pages.server_port}"], "host_pause_s": 0}
    return {"gpus": {"use": "simulated:1"}, "context": {**opened, **context}}


def preparer(d: Daemon) -> psutil.Process | None:
    """The parent of the processes that parse, which are the only ones that have lxml loaded."""
    for part in d.parts():
        with contextlib.suppress(psutil.Error):
            if any("lxml" in mapped.path for mapped in part.memory_maps()):
                return part.parent()
    return None


def test_sources_come_before_prompts_and_what_cannot_be_had_fails_its_request_alone(
    daemon: Start, pages: Pages
) -> None:
    d = daemon(config(pages, from_links=True, parse_memory_bytes=64 * 1024**2, keep_full_prompt=True))
    requests: list[dict[str, Any]] = [
        {"id": "urls", "prompt": "Which is longer?", "urls": [pages.url("Nile"), pages.url("Congo")]},
        {"id": "links", "prompt": f"Sum up [this page]({pages.url('Niger')})."},
        {"id": "chat", "urls": [pages.url("Volta")], "messages": [
            {"role": "user", "content": "first"}, {"role": "assistant", "content": "a"},
            {"role": "user", "content": "second"}]},
        {"id": "plain", "prompt": "No source."},
        {"id": "gone", "prompt": "p", "urls": [pages.url("gone")]},
        {"id": "out", "prompt": "p", "urls": [pages.url("out")]},
        {"id": "private", "prompt": "p", "urls": ["http://127.1:9/"]},
        {"id": "bomb", "prompt": "p", "urls": [pages.url("bomb")]},
        {"id": "many", "prompt": "p", "urls": [pages.url(str(i)) for i in range(11)]},
        {"id": "file", "prompt": "p", "files": ["notes.txt"]},
        {"id": "word", "prompt": 'the word "urls" alone'},
    ]  # fmt: skip
    d.drop("rivers.jsonl", requests)
    job = d.done("rivers.jsonl")
    results = {record["id"]: record for record in job.results}
    codes = {record["id"]: record["code"] for record in job.errors}
    assert codes == {
        "gone": "fetch_failed", "out": "url_forbidden", "private": "url_forbidden", "bomb": codes.get("bomb"),
        "many": "too_many_sources", "file": "file_forbidden",
    }  # fmt: skip
    assert codes["bomb"] in ("parse_memory", "parse_failed", "source_empty")
    for record in results.values():
        assert record["response"].startswith(digest(record.get("full_prompt", record["prompt"]))), record["id"]
    assert set(results) == {"urls", "links", "chat", "plain", "word"}
    assert "full_prompt" not in results["plain"] and "sources" not in results["word"]
    urls = results["urls"]
    assert urls["prompt"] == "Which is longer?"
    assert [source["title"] for source in urls["sources"]] == ["Nile", "Congo"]
    assert f"SOURCE [1]: Nile — {pages.url('Nile')} =====\n" in urls["full_prompt"]
    assert "The Congo is a river" in urls["full_prompt"] and "Menu" not in urls["full_prompt"]
    assert urls["full_prompt"].endswith("===== REQUEST =====\nWhich is longer?")
    assert results["links"]["full_prompt"].endswith("Sum up this page[1].")
    assert results["chat"]["full_prompt"].endswith("second")
    assert job.summary["failures"]["fetch_failed"]["advice"].startswith("look at the source")


def test_a_slow_source_holds_up_nobody_and_a_killed_preparer_only_for_a_moment(daemon: Start, pages: Pages) -> None:
    d = daemon(config(pages, on_error="note"))
    d.drop("slow.jsonl", [{"id": "s", "prompt": "slow", "urls": [pages.url("slow"), pages.url("gone")]}])
    job = d.job("slow.jsonl")
    running = wait_for(lambda: preparer(d), 10, "there is a preparer")
    assert running is not None
    parsing = running.children()
    d.drop("plain.jsonl", [{"id": f"p{i}", "prompt": f"plain {i}"} for i in range(50)])
    assert len(d.done("plain.jsonl").results) == 50
    assert not (job.directory / "summary.json").exists()
    os.kill(running.pid, signal.SIGKILL)
    wait_for(lambda: d.events("preparer_lost"), 10, "the loss is noticed")
    wait_for(lambda: not any(map(_runs, parsing)), 5, "what parsed for it is gone, too")
    pages.released.set()
    [record] = d.done("slow.jsonl").results
    assert [source.get("code") for source in record["sources"]] == [None, "fetch_failed"]
    assert d.status()["state"] == "running"
    parts = d.kill()
    wait_for(lambda: not any(map(_runs, parts)), 5, "nothing is left")


def test_off_by_default_and_files_of_a_folder(daemon: Start, tmp_path: Path, pages: Pages) -> None:
    d = daemon({"gpus": {"use": "simulated:1"}})
    d.drop("off.jsonl", [{"id": "u", "prompt": "p", "urls": [pages.url("Nile")]}])
    assert d.done("off.jsonl").codes() == {"context_off": 1}
    d.config_file.write_text(d.config_file.read_text() + "\n[context]\nenabled = true\nkeep_full_prompt = true\n")
    assert "context.enabled" in json.loads(d.control("reload", "--json").stdout)["changed"]
    requests = [
        {"id": "ok", "prompt": "p", "files": ["notes.source.md", "page.html"]},
        {"id": "up", "prompt": "p", "files": ["../settings.json"]},
        {"id": "none", "prompt": "p", "files": ["other.txt"]},
    ]
    folder = {
        "requests.jsonl": jsonl(requests),
        "notes.source.md": b"# Notes\n",
        "page.html": PAGE.format("Zambezi").encode(),
    }
    d.drop("folder", folder)
    job = d.done("folder")
    assert job.codes() == {"file_forbidden": 1, "file_unreadable": 1}
    [record] = job.results
    assert "# Notes" in record["full_prompt"] and "The Zambezi is a river" in record["full_prompt"]
