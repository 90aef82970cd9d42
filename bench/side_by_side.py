"""One benchmark of two checkouts in turn: the ratio of every figure, with its interval.

    python bench/side_by_side.py [--pairs 9] ../before dispatch --rounds 1

Each checkout runs its own program with its own environment (``scripts/setup dev`` there first). Which of the two
begins changes from pair to pair, because machines drift. A ratio above 1 means that this checkout is better, whether
the figure is a rate or a cost; the interval leaves out the lowest and the highest pair, which for nine pairs holds the
true median with 96 % (the binomial interval of a median). A figure has become worse where its whole interval is below
0.97; the exit status is 1 then. Words after the program's name go to it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
_WORSE = 0.97
_COST = re.compile(r"flushes|makespan|first_request|percent_of_a_core|_ms|_mb|_us$|(?<!per)_s$")


def is_cost(figure: str) -> bool:
    """Whether less of a figure is better; its name tells."""
    return _COST.search(figure) is not None


def measure(checkout: Path, program: str, words: list[str]) -> dict[str, float]:
    """The figures of one run; its goals are for whole runs and are not judged here."""
    command = [checkout / ".venv/bin/python", checkout / "bench" / f"{program}.py", *words]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    try:
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])["figures"]
    except (IndexError, ValueError, KeyError):
        raise SystemExit(f"{checkout}: {program} printed no figures:\n{done.stdout}{done.stderr}") from None
    return figures


def better(figure: str, now: float, before: float) -> float | None:
    """How many times better ``now`` is; None where a ratio says nothing."""
    if now <= 0 or before <= 0:
        return None
    return before / now if is_cost(figure) else now / before


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("before", type=Path)
    parser.add_argument("program")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    before = arguments.before.resolve()
    runs: dict[Path, list[dict[str, float]]] = {HERE: [], before: []}
    for pair in range(arguments.pairs):
        for checkout in (HERE, before) if pair % 2 else (before, HERE):
            runs[checkout].append(measure(checkout, arguments.program, arguments.words))
        print(f"pair {pair + 1} of {arguments.pairs}", file=sys.stderr, flush=True)
    rows, worse = {}, []
    for figure in runs[HERE][0].keys() & runs[before][0].keys():
        found = [better(figure, a[figure], b[figure]) for a, b in zip(runs[HERE], runs[before], strict=True)]
        ratios = sorted(ratio for ratio in found if ratio is not None)
        if not ratios:
            continue
        kept = ratios[1:-1] if len(ratios) > 4 else ratios
        rows[figure] = {
            "before": statistics.median(run[figure] for run in runs[before]),
            "now": statistics.median(run[figure] for run in runs[HERE]),
            "better": statistics.median(ratios),
            "low": kept[0],
            "high": kept[-1],
        }
        if kept[-1] < _WORSE:
            worse.append(figure)
    print(f"{arguments.program}: {arguments.pairs} pairs, median of each side, times better with its interval")
    for figure, row in sorted(rows.items()):
        mark = "  worse" if figure in worse else ""
        ratio = f"{row['better']:.3f}  ({row['low']:.3f} to {row['high']:.3f})"
        print(f"  {figure:<36} {row['before']:>12,.3f} {row['now']:>12,.3f}   {ratio}{mark}")
    rounded = {name: {key: round(value, 4) for key, value in row.items()} for name, row in sorted(rows.items())}
    print(json.dumps({"bench": arguments.program, "pairs": arguments.pairs, "rows": rounded, "worse": worse}))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
