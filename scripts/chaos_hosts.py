"""A storm of kills and cuts over a head and its hosts; see scripts/chaos. Exit status 1: a promise was broken."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from cluster_plan import Plan, make_plan  # noqa: E402 - needs the path above
from cluster_storm import CONFIG, SIMULATOR, ClusterStorm  # noqa: E402
from cluster_support import make_fleet  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--hosts", type=int, default=3, help="how many hosts there are (default 3)")
    parser.add_argument("--kills", type=int, default=100, help="how many kills and cuts there are (default 100)")
    parser.add_argument("--requests", type=int, help="how many requests are asked (default 20 for each kill)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000, help="of the plan (default: another one)")
    parser.add_argument("--root", type=Path, help="where everything is made (default: a temporary directory)")
    options = parser.parse_args()
    plan = make_plan(options.seed, options.kills, options.requests or 20 * options.kills)
    root = Path(tempfile.mkdtemp(prefix="obatchd-chaos-", dir=options.root))
    print(
        f"seed {plan.seed}: {len(plan.strikes)} kills and cuts, {plan.requests} requests in {len(plan.drops)} drops, "
        f"{options.hosts} hosts, in {root}",
        flush=True,
    )
    begun_s = time.monotonic()
    violations = _weather(root, plan, options.hosts)
    print(f"took {time.monotonic() - begun_s:.0f} s")
    if violations:
        print(f"{len(violations)} violations; run again with --seed {plan.seed}. Everything is kept: {root}")
        return 1
    shutil.rmtree(root)
    print("every promise was kept")
    return 0


def _weather(root: Path, plan: Plan, hosts: int) -> list[str]:
    """Go through the whole storm; every promise that was broken, told as soon as it was."""
    violations: list[str] = []
    try:
        with make_fleet(root, hosts, config=CONFIG, simulator=SIMULATOR) as fleet:
            storm = ClusterStorm(fleet, plan)
            try:
                storm.run()
            finally:
                violations += storm.struck.violations
                width = max(len(name) for name, _ in storm.rows())
                print(*(f"{name:<{width}}  {value}" for name, value in storm.rows()), sep="\n")
    except Exception as error:  # noqa: BLE001 - whatever stops the storm is shown beside what it left
        traceback.print_exc()
        violations.append(f"the storm broke off: {type(error).__name__}: {error}")
        print(f"VIOLATION: {violations[-1]}")
    return violations


if __name__ == "__main__":
    raise SystemExit(main())
