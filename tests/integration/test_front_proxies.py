"""The API over HTTP behind nginx and Caddy, with the examples of docs/api.md: what streams, streams through."""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import ollama
import pytest
from daemon_support import Daemon, wait_for
from openai import OpenAI
from port_support import free_ports
from programs_support import Programs, certificate, over_http, questions

from obatchd.client import Client

Make = Callable[..., Daemon]
PAGE = Path(__file__).parents[2] / "docs" / "api.md"
SLOW = {"tokens_per_s": 40, "answer": {"tokens": 40}, "chunk_s": 0.02}


def example(beginning: str) -> str:
    """A block of the page."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    [found] = [block for block in blocks if block.startswith(beginning)]
    return str(found)


def changed(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert text.count(old) >= 1, old
        text = text.replace(old, new)
    return text


def nginx(directory: Path, port: int, daemon_port: int) -> list[str]:
    server = changed(
        example("server {"), ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/gpu/fullchain.pem", f"{directory}/gpu.pem"), ("/etc/ssl/gpu/privkey.pem", f"{directory}/gpu.key"),
        ("127.0.0.1:8434", f"127.0.0.1:{daemon_port}"),
    )  # fmt: skip
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{name}_temp_path {directory}/{name};\n" for name in places)
    whole = f"pid {directory}/pid;\nerror_log {directory}/error.log;\nevents {{}}\n"
    (directory / "nginx.conf").write_text(f"{whole}http {{\naccess_log off;\n{temporary}{server}}}\n")
    return ["nginx", "-c", str(directory / "nginx.conf"), "-g", "daemon off; master_process off;"]


def caddy(directory: Path, port: int, daemon_port: int) -> list[str]:
    site = changed(
        example("gpu.example.org {"), ("127.0.0.1:8434", f"127.0.0.1:{daemon_port}"),
        ("gpu.example.org {\n", f"https://127.0.0.1:{port} {{\n    tls {directory}/gpu.pem {directory}/gpu.key\n"),
    )  # fmt: skip
    (directory / "Caddyfile").write_text(f"{{\n    admin off\n    auto_https off\n}}\n{site}")
    return ["caddy", "run", "--config", str(directory / "Caddyfile")]


@contextmanager
def running(command: list[str], directory: Path) -> Iterator[None]:
    with open(directory / "log", "wb") as log:
        variables = {**os.environ, "HOME": str(directory), "XDG_DATA_HOME": str(directory)}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, cwd=directory)
    try:
        yield
        assert process.poll() is None, (directory / "log").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture(params=["nginx", "caddy"])
def behind(request: pytest.FixtureRequest, make_daemon: Make, tmp_path: Path) -> Iterator[tuple[Programs, str, Any]]:
    """A daemon, the address of the proxy in front of it, and what the proxy's clients trust."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not here")
    directory = tmp_path / "proxy"
    directory.mkdir()
    chain, _ = certificate(directory, "gpu")
    found = over_http(make_daemon, simulator=SLOW)
    found.d.start().ready()
    port = free_ports(1)
    make = {"nginx": nginx, "caddy": caddy}[request.param]
    with running(make(directory, port, found.port), directory):
        trusted = ssl.create_default_context(cafile=str(chain))

        def answers() -> bool:
            try:
                return httpx2.get(f"https://127.0.0.1:{port}/", verify=trusted).text == "Ollama is running"
            except httpx2.TransportError:
                return False

        wait_for(answers, 20, "the proxy answers")
        yield found, f"https://127.0.0.1:{port}", chain


@pytest.mark.near
def test_the_examples_of_proxies_pass_everything_on(behind: tuple[Programs, str, Path]) -> None:
    found, url, chain = behind
    trusted = ssl.create_default_context(cafile=str(chain))
    asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    with OpenAI(base_url=f"{url}/v1", api_key=found.key, http_client=httpx2.Client(verify=trusted)) as client:
        chunks = iter(client.chat.completions.create(**asked, stream=True))
        assert next(chunks).choices
        # Nothing of the stream is held back: it has begun while the servers still work on it.
        assert sum(server["in_flight"] for server in found.d.seen()) == 1
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == client.chat.completions.create(**asked).choices[0].message.content != ""
        assert len(client.embeddings.create(model="tiny", input=["a", "b"]).data) == 2
        file = client.files.create(file=("r.jsonl", questions(3) + b" " * 20_000_000), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        done = found.until_over(batch.id)
        assert done.output_file_id and len(client.files.content(done.output_file_id).text.splitlines()) == 3
    headers = {"Authorization": f"Bearer {found.key}"}
    with ollama.Client(url, headers=headers, verify=trusted) as native:
        pieces = iter(native.chat(**asked, stream=True))
        assert next(pieces).message and sum(server["in_flight"] for server in found.d.seen()) == 1
        assert [*pieces][-1].done and native.list().models
    there = Client(url=url, key=found.key, ca=chain)
    assert [one.prompt for one in there.submit(["once?"]).wait(progress=False).results()] == ["once?"]
