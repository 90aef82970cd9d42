"""Effects of settings on the sources of requests."""

from __future__ import annotations

import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from daemon_support import Document
from reload_stage import Effect, Scene, Stage

PAGE = """<html><head><title>A river</title></head><body><article><h1>A river</h1><p>{} This is a paragraph that is long
enough to be taken for the main text of this page about rivers, and nobody doubts it.</p></article></body></html>"""


class Handler(BaseHTTPRequestHandler):
    """``/page/N`` is a page, ``/long/N`` a long one, ``/hop/N`` leads to one, ``/slow/N`` is late, ``/gone/N`` is
    missing, ``/heavy/N`` eats memory."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Pages)
        self.server.asked.append((time.monotonic(), self.path, self.headers["User-Agent"]))
        kind = self.path.split("/")[1]
        if kind == "slow":
            time.sleep(0.6)
        body = PAGE.format("A long sentence about rivers. " * (200 if kind == "long" else 1)).encode()
        self.send_response({"hop": 302, "gone": 404}.get(kind, 200))
        if kind == "hop":
            self.send_header("Location", self.path.replace("hop", "page"))
            body = b""
        if kind == "heavy":
            body = b"river " * 3_000_000 + "\U0001f41f".encode()
        self.send_header("Content-Type", "text/plain" if kind == "heavy" else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class Pages(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[float, str, str]] = []  # when, what, by whom
        self.count = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, kind: str = "page") -> str:
        """A URL that there was not yet."""
        self.count += 1
        return f"http://127.0.0.1:{self.server_port}/{kind}/{self.count}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()


def prepare(stage: Stage) -> None:
    stage.around.callback(stage.extra.setdefault("pages", Pages()).close)


def pages(stage: Stage) -> Pages:
    found: Pages = stage.extra["pages"]
    return found


def outcome(stage: Stage, *urls: str, **more: Any) -> tuple[str, Document]:
    """The code of a request with these sources, or what is recorded of it."""
    job = stage.run({"prompt": "Sum up.", "urls": list(urls), **more})
    return (job.errors[0]["code"], {}) if job.errors else ("", job.results[0])


def code_of(*kinds: str) -> Any:
    return lambda stage: outcome(stage, *(pages(stage).url(kind) for kind in kinds))[0]


def link_is_a_source(stage: Stage) -> bool:
    job = stage.run({"prompt": f"Sum up [this]({pages(stage).url()})."})
    return "sources" in job.results[0]


def prompt_is_kept(stage: Stage) -> bool:
    return "full_prompt" in outcome(stage, pages(stage).url())[1]


def length_of_prompt(stage: Stage) -> bool:
    """Whether a long source is in the prompt as a whole."""
    return len(outcome(stage, pages(stage).url("long"))[1]["full_prompt"]) > 3000


def pause_between_two(stage: Stage) -> bool:
    outcome(stage, pages(stage).url(), pages(stage).url())
    (first_s, *_), (second_s, *_) = pages(stage).asked[-2:]
    return second_s - first_s >= 0.4


def is_asked_again(stage: Stage) -> bool:
    """For a page that was fetched a moment ago."""
    url = pages(stage).url()
    outcome(stage, url)
    outcome(stage, url)
    return sum(url.endswith(path) for _, path, _ in pages(stage).asked) == 2


def text_is_kept(stage: Stage) -> bool:
    url, kept = pages(stage).url(), stage.d.spool / "work" / "sources"
    before = set(kept.rglob("*"))
    outcome(stage, url)
    return any(path.is_file() for path in set(kept.rglob("*")) - before)


def user_agent(stage: Stage) -> str:
    outcome(stage, pages(stage).url())
    return pages(stage).asked[-1][2]


SOURCES = Scene(
    {
        "context.enabled": Effect(False, True, code_of("page"), ("context_off", "")),
        "context.from_links": Effect(False, True, link_is_a_source, (False, True)),
        "context.on_error": Effect("fail", "note", code_of("gone"), ("fetch_failed", "")),
        "context.keep_full_prompt": Effect(False, True, prompt_is_kept, (False, True)),
        "context.allow": Effect([], ["127.0.0.0/8"], code_of("page"), ("url_forbidden", "")),
        "context.max_sources": Effect(10, 1, code_of("page", "page"), ("", "too_many_sources")),
        "context.max_bytes": Effect(10**6, 2048, code_of("long"), ("", "source_too_large")),
        "context.max_characters": Effect(
            20_000, 100, length_of_prompt, (True, False), {"context.keep_full_prompt": True}
        ),
        "context.max_redirects": Effect(5, 0, code_of("hop"), ("", "redirects")),
        "context.timeout_s": Effect(30, 0.2, code_of("slow"), ("", "fetch_timeout")),
        "context.host_pause_s": Effect(0, 0.4, pause_between_two, (False, True)),
        "context.parse_timeout_s": Effect(20, 1e-3, code_of("page"), ("", "parse_timeout")),
        "context.parse_memory_bytes": Effect(
            10**9, 64 * 1024**2, code_of("heavy"), ("", "parse_memory"), {"context.max_bytes": 10**8}
        ),
        "context.cache_s": Effect(3600, 0, is_asked_again, (False, True)),
        "context.cache_bytes": Effect(10**9, 0, text_is_kept, (True, False)),
        "context.user_agent": Effect("one", "two", user_agent, ("one", "two")),
    },
    {"context.enabled": True, "context.allow": ["127.0.0.0/8"], "context.host_pause_s": 0},
    prepare=prepare,
)
