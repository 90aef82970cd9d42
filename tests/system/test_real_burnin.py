"""A burn-in of real Ollama servers on the CPU, with the readings of stand-in GPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from daemon_support import Daemon, wait_for
from ollama_support import real_version

Start = Callable[..., Daemon]
pytestmark = [pytest.mark.real_ollama, pytest.mark.timeout(400)]
# 180 for the whole thing. An output check waits for the answers in flight, which here take up to 20 s.
DURATION_S = int(os.environ.get("OBATCHD_TEST_BURNIN_S", "60"))


@pytest.mark.alone
def test_slots_stay_busy_and_output_checks_are_calibrated_or_honestly_off(make_daemon: Start) -> None:
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")
    servers = {"ollama": program, "models_dir": models, "cpu_servers": 2, "slots": 4}
    theirs = make_daemon({"gpus": {"use": "none"}, "servers": servers}).start().ready()
    urls = [server["url"].removeprefix("http://") for server in theirs.servers()]
    # Every stand-in GPU belongs to a real server, and none gets a stand-in server.
    d = make_daemon(
        {
            "gpus": {"use": "simulated:2", "exclude": [0, 1]},
            "ollama_instances": {url: index for index, url in enumerate(urls)},
            "servers": {"remote_slots": 4},
            "burnin": {"canary_runs": 5, "model": "endless"},
        }
    )
    d.start().ready()
    answer = d.control("burnin", "start", "--duration", f"{DURATION_S}s", "--profile", "quick", "--json")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    wait_for(lambda: not d.client.get("burnin/status")["active"], DURATION_S + 180, "the burn-in is over")
    report: dict[str, Any] = json.loads(d.control("burnin", "report", "--json").stdout)
    assert report["state"] == "completed", report["end"]
    assert report["verdict"] == "PASS_LOW_STRESS", [gpu["reasons"] for gpu in report["gpus"]]
    for gpu in report["gpus"]:
        print(gpu["server"], gpu["stress"], gpu["work"], gpu["canary"])
        assert gpu["load"]["ollama"] == real_version() and gpu["load"]["model_digest"]
        assert gpu["stress"]["slots_busy_percent"] >= 95
        assert gpu["work"]["requests"] > 5 and gpu["work"]["failed"] == 0
        assert gpu["canary"]["state"] == "on" or gpu["canary"]["text"].startswith("off: ")
        assert gpu["canary"]["confirmed"] == 0
        assert gpu["stress"]["canary_s"] < gpu["stress"]["loaded_s"] / 2
        # The readings know nothing of this load, and the report does not pretend that they do.
        assert "low_stress" in {reason["signal"] for reason in gpu["reasons"]}
