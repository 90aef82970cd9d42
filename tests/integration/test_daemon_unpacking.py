"""Archives, workbooks and Parquet through the whole daemon, hostile ones among them."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil
from container_support import HOSTILE, MIB, parquet, workbook, zipped
from daemon_support import Daemon, jsonl, prompts, wait_for

Start = Callable[..., Daemon]
CASES = ("bomb", "tar link", "zst bomb", "entities", "xz dictionary", "footer", "cut off", "encrypted")


def test_hostile_drops_cost_themselves_alone(daemon: Start) -> None:
    """Each lies in ``failed/`` with its reason; the others are answered, and the daemon does not grow."""
    d = daemon({"inbox": {"unpack_memory_bytes": 256 * MIB}})
    d.drop("first.jsonl", prompts(20, "first"))
    d.done("first.jsonl").check()
    main = psutil.Process(d.pid)
    before = main.memory_info().rss
    hostile = {f"{case.replace(' ', '_')}{HOSTILE[case].name[1:]}": HOSTILE[case] for case in CASES}
    d.drop_all({name: case.make() for name, case in hostile.items()})
    rows = [{"id": f"r{n}", "prompt": f"row {n}"} for n in range(50)]
    good = {
        "rows.parquet": parquet(rows),
        "book.csv": workbook(["id", "prompt"], *[[row["id"], row["prompt"]] for row in rows]),
        "set.zip": zipped(("set/a.jsonl", jsonl(rows[:25])), ("set/b/c.jsonl", jsonl(rows[25:]))),
        "plain.jsonl": jsonl(rows),
    }
    d.drop_all(good)
    d.done("plain.jsonl", 5).check(rows)
    peak = before

    def refused() -> bool:
        nonlocal peak
        peak = max(peak, main.memory_info().rss)
        return len(list((d.spool / "failed").rglob("*.error.txt"))) == len(hostile)

    wait_for(refused, 60, "every hostile drop is refused")
    for name in good:
        d.done(name).check(rows)
    for name, case in hostile.items():
        [path] = (d.spool / "failed" / str(os.geteuid())).glob(f"*/{name}.error.txt")
        text = path.read_text()
        assert f"({case.code})" in text
        assert path.with_name(name).stat().st_size
    assert peak - before < 20 * MIB
