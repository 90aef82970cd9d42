"""scripts/setup shows how far it is, and tells the next step to whom has called it by hand."""

from __future__ import annotations

import os
import pty
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_PIP = """#!/bin/sh
case "$*" in *--require-hashes*) echo "Collecting attrs==1 (from x)"; echo "Collecting click==2" ;; esac
"""


def called(directory: Path, *, by_hand: bool, term: str = "xterm") -> str:
    """What scripts/setup shows in a terminal; a shell makes a process group for a command that is typed."""
    parent, child = pty.openpty()
    program = subprocess.Popen(
        [directory / "scripts/setup"],
        stdout=child,
        stderr=child,
        env=os.environ | {"TERM": term, "PYTHON": sys.executable},
        process_group=0 if by_hand else None,
    )
    os.close(child)
    shown = b""
    while True:
        try:
            shown += os.read(parent, 65536)
        except OSError:  # EIO: the program has closed the terminal
            break
    os.close(parent)
    assert program.wait() == 0, shown
    return shown.decode().replace("\r\n", "\n")


SCRIPTS = Path(__file__).parents[2] / "scripts"
# scripts/real-ollama makes its models anew whenever its text changes, and tells its usage at once as it is.
OF_BASH = [
    path.name
    for path in SCRIPTS.iterdir()
    if path.is_file() and path.name != "real-ollama" and path.read_bytes().startswith(b"#!/usr/bin/env bash")
]


@pytest.mark.parametrize("name", sorted(OF_BASH))
def test_every_script_tells_how_it_is_used_before_it_does_anything(tmp_path: Path, name: str) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / name, tmp_path / "scripts" / name)
    for option in ("--help", "-h"):
        told = subprocess.run(
            [f"./{name}", option], cwd=tmp_path / "scripts", capture_output=True, text=True, timeout=10, check=True
        )
        assert told.stderr == "" and f"scripts/{name}" in told.stdout and "#!" not in told.stdout
        assert "set -" not in told.stdout
    assert [path.name for path in tmp_path.rglob("*")] == ["scripts", name]


def test_a_wrong_option_of_the_demo_is_refused_before_it_does_anything(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "demo", tmp_path / "scripts" / "demo")
    told = subprocess.run([tmp_path / "scripts" / "demo", "--burning"], capture_output=True, text=True, timeout=10)
    assert told.returncode == 2 and "scripts/demo --burnin" in told.stderr


def test_the_demo_says_how_to_get_a_model_and_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/ollama")
    demo = runpy.run_path(str(SCRIPTS / "demo.py"))
    plan = demo["plan"](simulator=False)
    assert "the installed Ollama has no small model; ollama pull qwen2.5:0.5b gets one" in plan.words
    (tmp_path / "responses").mkdir()
    (tmp_path / "responses" / "a.txt").write_text("digest:8ebd")
    job = {"job": "1", "succeeded": 1, "requests": 1, "outbox": str(tmp_path), "notes": [], "state": "done"}
    assert demo["report"]([job], simulated=True)
    assert "a.txt, random words by a stand-in server:" in capsys.readouterr().out
    assert demo["report"]([job], simulated=False)
    assert "stand-in" not in capsys.readouterr().out


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(Path(__file__).parents[2] / "scripts/setup", tmp_path / "scripts/setup")
    for lock in ("requirements.lock", "requirements-dev.lock"):
        (tmp_path / lock).write_text("attrs==1 \\\n    --hash=sha256:0\nclick==2 \\\n    --hash=sha256:1\n")
    (tmp_path / "pyproject.toml").touch()
    pip = tmp_path / ".venv/bin/pip"
    pip.parent.mkdir(parents=True)
    pip.write_text(_PIP)
    pip.chmod(0o755)
    return tmp_path


def test_it_shows_progress_and_ends_with_the_next_step(checkout: Path) -> None:
    shown = called(checkout, by_hand=True)
    assert "setup: installing 2 packages into .venv" in shown and "\r\x1b[Ksetup: 2 of 2: click" in shown
    assert shown.endswith(f'  export PATH="{checkout}/.venv/bin:$PATH"\n  obatchd --spool ~/batch\n')
    assert called(checkout, by_hand=True).startswith("obatchd is in .venv. Next"), (
        "it is told again, and nothing is done"
    )
    assert called(checkout, by_hand=False) == "", "another script calls it"


def test_a_dumb_terminal_gets_no_line_drawn_anew(checkout: Path) -> None:
    assert "\x1b" not in called(checkout, by_hand=True, term="dumb")
