"""``scripts/demo --burnin``: a burn-in of six stand-in GPUs, five of which are bad in different ways.

Exit status: 0 when it found exactly those five, 1 when not, 130 after Ctrl-C, which also removes the spool.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

from demo import Demo, Plan, _command
from demo_parts import main

DURATION_S = 90
SIMULATOR = {
    "tokens_per_s": 400.0,
    "prompt_tokens_per_s": 30_000.0,
    "answer": {"kind": "uniform", "low": 60, "high": 120},
    "models": [{"name": "simulated", "kv_bytes_per_token": 256 * 1024}],
    "gpus": {
        # Double-bit errors in the second half, and a GPU whose fan fails.
        "1": [
            {"kind": "set", "at_s": 50, "values": {"ecc_uncorrected": 2, "ecc_uncorrected_aggregate": 2}},
            {"kind": "xid", "at_s": 50, "xid": 95, "line": "pid=4242, name=runner, Uncontained: LTC TAG"},
        ],
        "2": [
            {"kind": "heat", "at_s": 25, "temp_c": 89, "ramp_s": 20},
            {"kind": "throttle", "at_s": 40, "for_s": 30},
        ],
        # A bit that is always 1, which a model need not notice, and a card that has half of its lanes to the host.
        "4": [{"kind": "stuck_bit", "bit": 37, "place_percent": 40}],
        "5": [{"kind": "slow_link", "factor": 2}],
    },
}
SLOW_SERVER, SLOW_FACTOR = "gpu3", 1.4
BAD = {1, 2, 3, 4, 5}
ONLY = {4: {"wrong_memory"}, 5: {"slow_link"}}  # what nothing else finds, by GPU
PLAN = Plan(
    'model = "simulated"\ngpus = {use = "simulated:6", poll_s = 0.5, slow_poll_s = 2}\n'
    "[servers]\nslots = 2\nstagger_s = 0\n[burnin]\ncanary_runs = 5\n",
    {"OBATCHD_SIMULATOR": json.dumps(SIMULATOR)},
    f"SIMULATED: a burn-in of {DURATION_S} s on 6 stand-in GPUs: first with a model, then with products and patterns.\n"
    "GPU 1 gets double-bit errors, GPU 2 gets too hot, GPU 3 is slow. Only the pattern in its memory finds the stuck\n"
    "bit of GPU 4, and only the bandwidth of the others shows that half of the lanes of GPU 5 are missing.",
)


def slow_down(demo: Demo) -> None:
    """Let one stand-in server answer as a GPU does whose clocks are too low."""
    servers = demo.client.get("servers")["servers"]
    url = next(server["url"] for server in servers if server["id"] == SLOW_SERVER)
    fault = json.dumps([{"kind": "slow", "factor": SLOW_FACTOR}]).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/simulator/faults", fault), timeout=5).close()


def run(directory: Path) -> int:
    print(PLAN.words)
    demo = Demo(directory, PLAN)
    control = [_command("obatchctl"), "--spool", str(demo.spool), "burnin"]
    page = directory / "burnin.html"
    try:
        demo.wait_until_ready(every=True)
        slow_down(demo)
        print(f"\n$ obatchctl burnin start --profile quick --duration {DURATION_S}s --wait\n", flush=True)
        subprocess.run([*control, "start", "--profile", "quick", "--duration", f"{DURATION_S}s", "--wait"], check=False)
        subprocess.run([*control, "report", "--html", page], check=False, stdout=subprocess.DEVNULL)
        report = demo.client.get("burnin/reports/latest")
    finally:
        demo.stop()
    failed = {
        gpu["index"]: {r["signal"] for r in gpu["reasons"] if r["consequence"] == "fail"} for gpu in report["gpus"]
    }
    found = {index for index, signals in failed.items() if signals}
    print(f"\nThe page: {page}\nThe daemon and its servers are stopped. Remove everything with: rm -r {directory}")
    if found != BAD:
        print(f"\nBad are {sorted(BAD)}, found were {sorted(found)}; the daemon's log is {demo.log}")
        return 1
    for index, signals in ONLY.items():
        if failed[index] != signals:
            print(f"\nGPU {index} was to fail by {sorted(signals)}, and failed by {sorted(failed[index])}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(run))
