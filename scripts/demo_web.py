"""``scripts/demo --web``: a daemon with work on eight stand-in GPUs, two of which have trouble, and its page.

It prints a link to the page, and ends by itself after five minutes, or at Ctrl-C. Exit status: 0.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo import Demo, Plan, _command
from demo_parts import free_port

FOR_S = 300.0
SIMULATOR = {
    "load_s": 1.0,
    "tokens_per_s": 40.0,
    "answer": {"kind": "lognormal", "mean": 60},
    "models": [{"name": "simulated"}],
    "gpus": {
        "2": [{"kind": "heat", "at_s": 5, "temp_c": 89, "ramp_s": 20}],
        "5": [
            {"kind": "set", "at_s": 20, "values": {"ecc_uncorrected": 2, "ecc_uncorrected_aggregate": 2}},
            {"kind": "xid", "at_s": 20, "xid": 95, "line": "pid=4242, name=runner, Uncontained: LTC TAG"},
        ],
    },
}
WORDS = ("the", "family", "moved", "work", "was", "long", "but", "nobody", "spoke", "of", "it", "until", "later")


def plan() -> Plan:
    """Listening on a port that is free."""
    return Plan(
        'model = "simulated"\ngpus = {use = "simulated:8", poll_s = 1, slow_poll_s = 5}\n'
        f'[servers]\nslots = 4\nstagger_s = 0\n[http]\nlisten = "127.0.0.1:{free_port()}"\n',
        {"OBATCHD_SIMULATOR": json.dumps(SIMULATOR)},
        "SIMULATED: 8 stand-in servers and GPUs, of which GPU 2 gets hot and GPU 5 has memory errors.",
    )


def give_work(demo: Demo, directory: Path) -> None:
    """Jobs of several sizes, and one with lines that are none, for which ``submit`` ends with 1."""
    chosen = random.Random(17)
    for name, count in (("reviews", 60), ("interviews", 4000), ("letters-1912", 9000), ("notes", 90)):
        path = directory / f"{name}.jsonl"
        lines = [
            json.dumps({"id": f"{name}-{n}", "prompt": f"Sum up: {' '.join(chosen.choices(WORDS, k=30))}."})
            for n in range(count)
        ]
        path.write_text("\n".join([*lines, *(['{"id": "torn'] * (3 if name == "notes" else 0)), ""]), "utf-8")
        subprocess.run(
            [_command("obatchctl"), "--spool", demo.spool, "submit", path], check=False, stdout=subprocess.DEVNULL
        )


def run(directory: Path) -> int:
    chosen = plan()
    print(chosen.words)
    demo = Demo(directory, chosen)
    try:
        demo.wait_until_ready(every=True)
        give_work(demo, directory)
        print(f"\n$ obatchctl --spool {demo.spool} web\n", flush=True)
        subprocess.run([_command("obatchctl"), "--spool", demo.spool, "web"], check=True)
        print(f"\nIt ends in {FOR_S / 60:.0f} minutes, or at Ctrl-C. That command prints another link.", flush=True)
        time.sleep(FOR_S)
    finally:
        demo.stop()
    return 0


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="obatchd-demo-"))
    try:
        return run(directory)
    except KeyboardInterrupt:
        return 0
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        print("\nStopped; nothing is left.", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
