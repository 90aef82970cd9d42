"""The stand-in as a process: what shows only from outside."""

from __future__ import annotations

import http.client
import json
import subprocess
from pathlib import Path

import psutil
import pytest
from ollama_support import SIMULATED_COMMAND, launch, serving, wait_for

from obatchd.simulator.gpus import SimulatedGpus, simulated_uuid

PROMPT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


def test_it_says_that_it_is_simulated(tmp_path: Path) -> None:
    asked = subprocess.run([*SIMULATED_COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert "0.24.0-simulated" in asked.stdout
    with serving(SIMULATED_COMMAND, tmp_path) as server:
        assert "simulated Ollama" in server.log_text()


def test_it_proves_the_gpu_that_it_was_given(tmp_path: Path) -> None:
    uuid = simulated_uuid(1)
    environment = {"CUDA_VISIBLE_DEVICES": uuid, "OBATCHD_SIMULATOR_GPU_DIR": str(tmp_path / "gpus")}
    with serving(SIMULATED_COMMAND, tmp_path, None, **environment) as server:
        assert f'msg="inference compute" id={uuid} filter_id="" library=CUDA ' in server.log_text()
        server.ask("POST", "/api/generate", {"model": "tiny", "keep_alive": -1})
        source = SimulatedGpus(tmp_path / "gpus", 2)
        loaded = wait_for(lambda: [reading for reading in source.readings() if reading.processes], "memory in use")
        (runner,) = server.runners()
        assert [(reading.uuid, reading.processes[0].pid) for reading in loaded] == [(uuid, runner.pid)]


def test_a_crash_ends_serve_and_leaves_its_runner(tmp_path: Path) -> None:
    config = json.dumps({"faults": [{"kind": "crash", "at": 2}]})
    with serving(SIMULATED_COMMAND, tmp_path, OBATCHD_SIMULATOR=config) as server:
        assert server.ask("POST", "/api/chat", PROMPT).status == 200
        (runner,) = server.runners()
        with pytest.raises((OSError, http.client.HTTPException)):
            server.ask("POST", "/api/chat", PROMPT)
        assert server.process.wait(10) == 2
        assert runner.is_running() and runner.status() != psutil.STATUS_ZOMBIE


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    for text, words in (('{"start_failure": "no luck"}', "Error: no luck"), ('{"x": 1}', "OBATCHD_SIMULATOR")):
        server = launch(SIMULATED_COMMAND, tmp_path, OBATCHD_SIMULATOR=text)
        assert server.process.wait(10) == 1
        assert words in server.log_text()


def test_connections_wait_for_discovery(tmp_path: Path) -> None:
    with serving(SIMULATED_COMMAND, tmp_path, OBATCHD_SIMULATOR='{"discovery_s": 0.5}') as server:
        assert server.log_text().index("discovering") < server.log_text().index("inference compute")
