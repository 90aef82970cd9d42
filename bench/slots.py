"""Tokens per second with the slots that obatchd finds, beside 8 slots and the best of a sweep.

    python bench/slots.py                               # stand-ins that follow curves, about ten minutes
    eval "export $(scripts/real-ollama | tr '\\n' ' ')"; python bench/slots.py --real --most 16

One server, and one job that takes more than an hour, because shorter ones are left alone in their first ten minutes.
The daemon finds the slots on it as it does everywhere, but without the hour between two changes; then it is started
again and again on the rest of the job, with the number it found and with each number of the sweep, in rounds, and its
answers are counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from harness import Daemon, finish, prompt_lines, table, wait_for, workplace

LADDER = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
CURVES = {
    "rising": [[1, 100], [64, 4200]],
    "level from 16": [[1, 120], [16, 1600], [64, 1650]],
    "highest at 24": [[1, 80], [24, 1800], [64, 1000]],
    "falling from 4": [[1, 400], [4, 1000], [64, 300]],
}
REQUESTS = 900_000
WARM_S = 3.0


def simulated(points: list[list[float]]) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {"model": "tiny", "log_level": "info", "gpus": "simulated:1"}
    return config, {"throughput": {"points": points, "noise": 0.1}, "load_s": 0.5, "answer": {"value": 20}}


def real() -> tuple[dict[str, Any], dict[str, Any]]:
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        raise SystemExit("name a real Ollama first: see scripts/real-ollama")
    servers = {"ollama": program, "models_dir": models}
    more = {"model": "endless", "max_response_tokens": 64, "log_level": "info", "gpus": "none"}
    return {**more, "servers": servers}, {}


class Subject:
    """One server with its job."""

    def __init__(self, directory: Path, config: dict[str, Any], simulator: dict[str, Any], measured_s: float) -> None:
        directory.mkdir()
        self._directory, self._config, self._simulator = directory, config, simulator
        self._measured_s = measured_s

    def _daemon(self, slots: int | str) -> Daemon:
        servers = {"stagger_s": 0, "tune_pause_s": 1, **self._config.get("servers", {}), "slots": slots}
        return Daemon(self._directory, {**self._config, "drain_s": 1, "servers": servers}, self._simulator)

    def search(self, timeout_s: float) -> tuple[int, float, list[dict[str, Any]]]:
        """Let the daemon find the slots: the number, the seconds that took, and all that it tried."""
        with self._daemon("auto") as daemon:
            daemon.start()
            daemon.client.post("pause")
            drop = self._directory / "job.jsonl"
            prompt_lines(drop, REQUESTS)
            os.rename(drop, daemon.inbox / drop.name)

            def is_read() -> bool:
                return [job["requests"] for job in daemon.client.get("jobs")["jobs"]] == [REQUESTS]

            # Reading the job takes a core, which a server on the CPU lacks meanwhile.
            wait_for(is_read, 300, "the job is read", 0.5)
            daemon.client.post("resume")
            begun_s = time.monotonic()

            def found() -> dict[str, Any] | None:
                profiles = daemon.client.get("servers/tuning")["profiles"]
                return profiles[0] if profiles and profiles[0]["chosen"] else None

            profile = wait_for(found, timeout_s, "the slots are found", 0.5)
            return profile["chosen"], time.monotonic() - begun_s, profile["tried"]

    def speed(self, slots: int | str) -> float:
        """Answers per second."""
        with self._daemon(slots) as daemon:
            daemon.start()

            def done() -> int:
                return sum(int(server["requests_done"]) for server in daemon.status()["servers"])

            first = wait_for(done, 120, "the first answer")
            time.sleep(WARM_S)
            first, begun_s = done(), time.monotonic()
            time.sleep(self._measured_s)
            return (done() - first) / (time.monotonic() - begun_s)


def judge(name: str, subject: Subject, sweep: list[int], rounds: int) -> dict[str, float]:
    """Find the slots, then measure; prints a table."""
    chosen, took_s, tried = subject.search(1800)
    speeds: dict[int | str, list[float]] = {}
    for _ in range(rounds):
        for slots in ("auto", *sweep):
            speeds.setdefault(slots, []).append(subject.speed(slots))
    means = {slots: statistics.fmean(found) for slots, found in speeds.items()}
    best = max(sweep, key=lambda slots: means[slots])
    rows = [("slots found, seconds it took", f"{chosen}, {took_s:.0f}")]
    rows += [
        (f"  tried {one['slots']}", f"{one['tokens_per_s']} tokens/s" if one["tokens_per_s"] else one["state"])
        for one in tried
    ]
    rows.append(("answers/s with what was found", f"{means['auto']:.1f}"))
    rows += [(f"answers/s with {slots}", f"{means[slots]:.1f}") for slots in sweep]
    figures = {"of_best": means["auto"] / means[best], "of_8": means["auto"] / means[8], "chosen": chosen, "best": best}
    rows.append((f"÷ the best of the sweep ({best}), ÷ 8", f"{figures['of_best']:.3f}, {figures['of_8']:.3f}"))
    table(name, rows)
    sys.stdout.flush()
    return figures


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", action="store_true", help="a real Ollama on the CPU")
    parser.add_argument("--curves", default=",".join(CURVES), help="names, with commas")
    parser.add_argument("--most", type=int, default=64, help="the largest number of the sweep, 8 or more")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    arguments = parser.parse_args()
    sweep = [slots for slots in LADDER if slots <= arguments.most]
    figures: dict[str, float] = {}
    goals: dict[str, tuple[str, float]] = {}
    names = ["real"] if arguments.real else arguments.curves.split(",")
    with workplace() as directory:
        for name in names:
            config, simulator = real() if arguments.real else simulated(CURVES[name])
            subject = Subject(directory / name.replace(" ", "-"), config, simulator, arguments.seconds)
            found = judge(name, subject, sweep, arguments.rounds)
            figures |= {f"{name}: {figure}": value for figure, value in found.items()}
            goals[f"{name}: of_best"] = (">=", 0.95)
    return finish("slots", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
