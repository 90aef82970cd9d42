"""Write down what a real Ollama answers to the requests of tests/system/exchanges.py, for the tests of the stand-in.

eval "$(scripts/real-ollama --line 0.33)" && export OBATCHD_TEST_OLLAMA OBATCHD_TEST_MODELS
.venv/bin/python scripts/record_ollama.py        # writes tests/recorded/ollama-0.33.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

SYSTEM_TESTS = Path(__file__).parent.parent / "tests" / "system"
sys.path.insert(0, str(SYSTEM_TESTS))

from exchanges import RECORDED, ask, exchanges  # noqa: E402 - needs the path above
from ollama_support import real_command, real_line, real_models, serving  # noqa: E402


def main() -> int:
    command = real_command()
    if command is None:
        print("name a real Ollama first: see scripts/real-ollama", file=sys.stderr)
        return 2
    line = real_line()
    with tempfile.TemporaryDirectory() as directory, serving(command, Path(directory), real_models()) as server:
        version = server.ask("GET", "/api/version").json()["version"]
        outcomes = {name: ask(server, line, name) for name in exchanges(line)}
    path = RECORDED / f"ollama-{line}.json"
    path.write_text(json.dumps({"version": version, "outcomes": outcomes}, indent=1) + "\n")
    print(f"{len(outcomes)} answers of {version} are in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
