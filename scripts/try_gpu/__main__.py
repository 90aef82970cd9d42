"""The steps of ``scripts/try-gpu``, which has the words for people."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Never

from results import STEPS, OutOfTime, Results

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 510  # of a step; the rest of nine minutes is for its end


def out_of_time(_number: int, _frame: object) -> Never:
    raise OutOfTime


def main() -> int:
    sys.path += [str(ROOT / "bench"), str(ROOT / "tests" / "unit")]
    from burning import burnin
    from machine import CACHE, Machine
    from steps import care, families, job, prepare, readings, slots

    parser = argparse.ArgumentParser(prog="scripts/try-gpu")
    parser.add_argument("step", nargs="?", choices=STEPS)
    parser.add_argument("--results", type=Path, help="a folder that gets a copy of all results so far")
    arguments = parser.parse_args()
    machine = Machine(only_stand_ins=arguments.step is None)
    results = Results(CACHE / "results", CACHE / "work" / "state", arguments.results)
    signal.signal(signal.SIGALRM, out_of_time)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    acts = dict(zip(STEPS, (prepare, readings, job, slots, families, care, burnin), strict=True))
    wanted = [arguments.step] if arguments.step else list(STEPS)
    for name in wanted:
        signal.alarm(LIMIT_S)
        with results.step(name, machine.words):
            acts[name](machine, results)
        signal.alarm(0)
        machine.keep_logs(results.kept / "logs.tar.xz")
        results.copy()
    print(f"\n{results.kept / 'summary.txt'}:\n\n{(results.kept / 'summary.txt').read_text()}")
    return 1 if any(name in wanted for name in results.failed_steps()) else 0


if __name__ == "__main__":
    sys.exit(main())
