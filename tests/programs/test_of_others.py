"""Programs of other people, as they come from the registry, each in an environment of its own, against the daemon.

``scripts/test-programs`` makes the environments and runs this; without it there is nothing to try.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_support import Daemon
from programs_support import over_http

HERE = Path(__file__).parent
PROGRAMS = {
    "langchain-ollama": "langchain_first.py",
    "instructor": "instructor_first.py",
    "litellm": "litellm_first.py",
}
MODEL = "able"
SIMULATOR = {"answer": {"tokens": 6}, "models": [{"name": MODEL, "capabilities": ["completion", "tools"]}]}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("package", PROGRAMS)
def test_it_does_the_first_example_of_its_readme(
    package: str, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    python = Path(os.environ.get("OBATCHD_TEST_PROGRAMS", "/none"), package, "bin", "python")
    if not python.exists():
        pytest.skip(f"{package} is not here: scripts/test-programs gets it")
    found = over_http(make_daemon, simulator=SIMULATOR)
    found.d.start().ready()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {
        "MODEL": MODEL, "OPENAI_BASE_URL": found.url, "OPENAI_API_KEY": found.key, "OLLAMA_API_KEY": found.key,
        "OLLAMA_HOST": f"http://127.0.0.1:{found.port}", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(tmp_path),
    }  # fmt: skip
    command = [str(python), str(HERE / PROGRAMS[package])]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=150)
    assert (ran.returncode, ran.stdout.splitlines()[-1:]) == (0, ["good"]), ran.stdout + ran.stderr
