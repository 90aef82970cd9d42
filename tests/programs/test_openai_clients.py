"""The official clients as they come from the registry, against stand-ins and real servers.

OpenAI's client for Python in its oldest version (1.0), its oldest with batches (1.22) and its newest, the one for Node,
and curl, each with the same calls. Files and batches: a thousand lines, lists of three pages, streaming downloads,
cancelling in every state. Questions at once: whole, in pieces, as JSON, as vectors, refused.
``scripts/test-programs`` gets them and runs this; of what is not here there is nothing to try.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_support import Daemon
from programs_support import Programs, over_http

HERE = Path(__file__).parent
CLIENTS = ("openai-1.22", "openai", "openai-node", "curl")
ALL = ("openai-1.0", *CLIENTS)
SLASHED = "hf.co/somebody/some-model:Q4_K_M"
SIMULATOR = {
    "answer": {"tokens": 4}, "service_s": {"kind": "fixed", "value": 0.02},
    "models": [{"name": "able"}, {"name": SLASHED}],
}  # fmt: skip
Make = Callable[..., Daemon]


def command(client: str, calls: str) -> list[str]:
    """How a client does its ``calls``, batches or chats; skips where it is not here."""
    own = Path(os.environ.get("OBATCHD_TEST_PROGRAMS", "/none"), client)
    if client == "curl":
        program, script = shutil.which("bash") if shutil.which("curl") else None, f"curl_{calls}.sh"
    elif client == "openai-node":
        program, script = shutil.which("node") if (own / "node_modules").is_dir() else None, f"openai_{calls}.mjs"
    else:
        program, script = str(own / "bin/python") if (own / "bin/python").exists() else None, f"openai_{calls}.py"
    if program is None:
        pytest.skip(f"{client} is not here: scripts/test-programs gets it")
    return [program, str(HERE / script)]


def ends_well(client: str, calls: str, found: Programs, model: str, directory: Path, limit_s: float) -> None:
    asked = command(client, calls)
    found.d.start().ready()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {
        "OPENAI_BASE_URL": found.url, "OPENAI_API_KEY": found.key, "LINES": "1000",
        "MODEL": model, "VECTORS": model if model == "able" else "vectors",
        "PYTHON": sys.executable, "HOME": str(directory),
        "NODE_PATH": str(Path(os.environ.get("OBATCHD_TEST_PROGRAMS", "/none"), client, "node_modules")),
    }  # fmt: skip
    ran = subprocess.run(asked, capture_output=True, text=True, env=environment, cwd=directory, timeout=limit_s)
    assert (ran.returncode, ran.stdout.splitlines()[-1:]) == (0, ["good"]), ran.stdout + ran.stderr


def on_a_real_server(make_daemon: Make) -> Programs:
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")
    servers = {"ollama": program, "models_dir": models, "cpu_servers": 1, "slots": 4}
    return over_http(make_daemon, {"gpus": {"use": "none"}, "servers": servers})


@pytest.mark.timeout(240)
@pytest.mark.parametrize("client", CLIENTS)
def test_files_and_batches(client: str, make_daemon: Make, tmp_path: Path) -> None:
    ends_well(client, "batches", over_http(make_daemon, simulator=SIMULATOR), "able", tmp_path, 200)


@pytest.mark.real_ollama
@pytest.mark.timeout(900)
@pytest.mark.parametrize("client", CLIENTS)
def test_files_and_batches_with_a_real_ollama(client: str, make_daemon: Make, tmp_path: Path) -> None:
    ends_well(client, "batches", on_a_real_server(make_daemon), "tiny", tmp_path, 800)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("client", ALL)
def test_questions_at_once(client: str, make_daemon: Make, tmp_path: Path) -> None:
    found = over_http(make_daemon, simulator=SIMULATOR | {"answer": {"tokens": 12}, "tokens_per_s": 200})
    ends_well(client, "chats", found, "able", tmp_path, 100)


@pytest.mark.real_ollama
@pytest.mark.timeout(240)
@pytest.mark.parametrize("client", ALL)
def test_questions_at_once_with_a_real_ollama(client: str, make_daemon: Make, tmp_path: Path) -> None:
    ends_well(client, "chats", on_a_real_server(make_daemon), "tiny", tmp_path, 200)
