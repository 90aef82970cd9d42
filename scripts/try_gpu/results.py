"""The folder of results: what each step said, its figures, its files, and a summary of all steps."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STEPS = ("prepare", "readings", "job", "slots", "families", "care", "burnin")
MOST_BYTES = 16 * 2**20 - 1  # of a file


class OutOfTime(BaseException):
    """The step has had its nine minutes; no part of it goes on."""


class Results:
    """Everything is written at once, so that a step that is cut off leaves what it has.

    Args:
        kept: the folder, for all steps.
        state: a folder with one document for each step.
        also: gets a copy of ``kept`` at the end of every step.
    """

    def __init__(self, kept: Path, state: Path, also: Path | None) -> None:
        self.kept, self._state, self._also = kept, state, also
        kept.mkdir(parents=True, exist_ok=True)
        state.mkdir(parents=True, exist_ok=True)
        self._step: dict[str, Any] = {}
        self._before: dict[str, Any] = {}
        self._began_s = 0.0

    @contextlib.contextmanager
    def step(self, name: str, where: str) -> Iterator[None]:
        """One step; ``where`` says on what it runs."""
        self._began_s = time.monotonic()
        before = dict(self._steps()).get(name, {})
        self._before = before["figures"] if before and not before.get("whole", True) and before["on"] == where else {}
        self._step = {
            "step": name,
            "on": where,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "took_s": 0.0,
            "whole": False,
            "lines": [],
            "figures": {},
            "failed": [],
        }
        print(f"== {name}, on {where}")
        try:
            with self.part("the step as a whole"):
                yield
            self._step["whole"] = True
        except OutOfTime:
            self.fail("the rest of the step: its nine minutes were over")
        finally:
            self._write()
            self.copy()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part that may fail while the others go on."""
        try:
            yield
        except OutOfTime:
            self.fail(f"{name}: not done, the time was over")
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the results of other parts count
            traceback.print_exc(file=sys.stdout)
            self.fail(f"{name}: {type(error).__name__}: {error}")

    def say(self, text: str) -> None:
        self._step["lines"].append(text)
        print(f"   {text}", flush=True)
        self._write()

    def figure(self, name: str, value: float | str | None, unit: str = "") -> None:
        self._step["figures"][name] = value
        shown = f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e5 else value
        self.say(f"{name}: {shown} {unit}".rstrip())

    def earlier(self, name: str) -> float | str | None:
        """A figure of this step that was measured before it was cut off, on the same machine."""
        return self._before.get(name)

    def fail(self, text: str) -> None:
        self._step["failed"].append(text)
        print(f"   FAILED: {text}", flush=True)
        self._write()

    def check(self, good: bool, text: str) -> None:
        """Say it when it is so, else that it failed."""
        if good:
            self.say(text)
        else:
            self.fail(text)

    def json(self, name: str, document: Any) -> None:
        (self.kept / name).write_text(json.dumps(document, indent=1, default=str))

    def failed_steps(self) -> list[str]:
        return [name for name, step in self._steps() if step["failed"] or not step.get("whole", True)]

    def _steps(self) -> list[tuple[str, dict[str, Any]]]:
        paths = [(name, self._state / f"{name}.json") for name in STEPS]
        return [(name, json.loads(path.read_text())) for name, path in paths if path.exists()]

    def _write(self) -> None:
        self._step["took_s"] = round(time.monotonic() - self._began_s, 1)
        (self._state / f"{self._step['step']}.json").write_text(json.dumps(self._step))
        steps = self._steps()
        lines = ["scripts/try-gpu", ""]
        for name, step in steps:
            failed = step["failed"]
            verdict = f"{len(failed)} FAILED" if failed else "good" if step.get("whole", True) else "CUT OFF"
            lines += [f"== {name}: {verdict}, {step['took_s']:.0f} s, {step['at']}, on {step['on']}"]
            lines += [f"   {line}" for line in step["lines"]] + [f"   FAILED: {line}" for line in failed] + [""]
        missing = [name for name in STEPS if name not in dict(steps)]
        lines += [f"Not run: {', '.join(missing)}"] if missing else []
        (self.kept / "summary.txt").write_text("\n".join(lines).rstrip() + "\n")
        self.json("figures.json", {name: {"on": step["on"], **step["figures"]} for name, step in steps})

    def copy(self) -> None:
        """All results so far to the other folder; a file that is too large is named instead."""
        if self._also is None:
            return
        self._also.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.kept.iterdir()):
            if path.stat().st_size <= MOST_BYTES:
                shutil.copyfile(path, self._also / path.name)
            else:
                print(f"   {path} is too large to be copied")
