"""A storm of kills and faults on a whole daemon; see scripts/chaos. Exit status 1: a promise was broken."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from storm import Storm  # noqa: E402 - needs the path above
from storm_plan import make_plan  # noqa: E402
from storm_setup import make_storm  # noqa: E402
from storm_verdict import Verdict, judge  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many processes are killed (default 100)")
    parser.add_argument("--requests", type=int, help="how many requests are asked (default 20 for each kill)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000, help="of the plan (default: another one)")
    parser.add_argument("--real", action="store_true", help="with the Ollama of scripts/real-ollama and its tiny model")
    parser.add_argument("--root", type=Path, help="where the spool is made (default: a temporary directory)")
    options = parser.parse_args()
    if options.kills < 20:
        parser.error("--kills must be at least 20")
    if options.real and not os.environ.get("OBATCHD_TEST_OLLAMA"):
        parser.error('--real needs an Ollama; run first: eval "$(scripts/real-ollama)"')
    plan = make_plan(options.seed, options.kills, options.requests or 20 * options.kills, real=options.real)
    root = Path(tempfile.mkdtemp(prefix="obatchd-chaos-", dir=options.root))
    print(
        f"seed {plan.seed}: {plan.kills} kills, {plan.requests} requests in {len(plan.drops)} drops, "
        f"{len(plan.batches)} batches over HTTP, in {root}"
    )
    with make_storm(root, plan, real=options.real) as storm:
        verdict, violations = _weather(storm, real=options.real)
    width = max(len(name) for name, _ in verdict.rows)
    for name, value in verdict.rows:
        print(f"{name:<{width}}  {value}")
    for violation in violations[:50]:
        print(f"VIOLATION: {violation}")
    if violations:
        print(f"{len(violations)} violations; run again with --seed {plan.seed}. The spool is kept: {root}")
        return 1
    storm.d.clean()
    shutil.rmtree(root)
    print("every promise was kept")
    return 0


def _weather(storm: Storm, *, real: bool) -> tuple[Verdict, list[str]]:
    """Go through the whole storm; what it left, and every promise that was broken."""
    begun_s = time.monotonic()
    violations: list[str] = []
    try:
        storm.run()
    except Exception as error:  # noqa: BLE001 - whatever stops the storm is shown beside what it left
        traceback.print_exc()
        violations.append(f"the storm broke off: {type(error).__name__}: {error}")
    finally:
        if storm.exit_code is None:
            storm.d.clean()
    verdict = judge(storm, time.monotonic() - begun_s, real=real)
    return verdict, violations + verdict.violations


if __name__ == "__main__":
    raise SystemExit(main())
