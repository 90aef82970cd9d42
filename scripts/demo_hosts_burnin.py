"""The last part of ``scripts/demo --hosts``: a burn-in of all hosts, with one GPU that is slow.

The first GPU of each host is tested. There is no other one beside it in its host, so only comparison over hosts shows
that it is slow.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demo_hosts import Fleet

DURATION_S = 30
SLOW_FACTOR = 1.5
_LIMIT_S = 90.0  # preparing and reporting take some seconds


def burn_in(fleet: Fleet) -> list[str]:
    """Run it and show the report; what it did not find, or found although it is not so."""
    slow = f"{fleet.hosts[-1].name}.gpu0"
    _slow_down(fleet, slow)
    print(f"\nNow a burn-in of {DURATION_S} s over all hosts, of one GPU in each. {slow} was slowed down. Nobody can")
    print("see that who looks at its host alone: no GPU beside it is tested.")
    options = f"--hosts all --gpus 0 --duration {DURATION_S}s --load model --no-canary"
    fleet.show("burnin", "start", *options.split())
    deadline_s = time.monotonic() + _LIMIT_S
    while fleet.client.get("burnin/status")["active"]:
        if time.monotonic() > deadline_s:
            return [f"the burn-in was not over within {_LIMIT_S:.0f} s"]
        time.sleep(1.0)
    fleet.show("burnin", "report")
    return list(_wrong(fleet.client.get("burnin/reports/latest"), slow))


def _slow_down(fleet: Fleet, server_id: str) -> None:
    """Let one stand-in server answer as a GPU does whose clocks are too low."""
    url = next(server["url"] for server in fleet.client.get("servers")["servers"] if server["id"] == server_id)
    fault = json.dumps([{"kind": "slow", "factor": SLOW_FACTOR}]).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/simulator/faults", fault), timeout=5).close()


def _wrong(report: dict[str, Any], slow: str) -> Iterator[str]:
    for gpu in report["gpus"]:
        failed = [reason["signal"] for reason in gpu["reasons"] if reason["consequence"] == "fail"]
        if failed != (["slow"] if gpu["server"] == slow else []):
            yield f"the burn-in says of {gpu['server']}: {', '.join(failed) or 'nothing is wrong'}"
    for host in report["hosts"]:
        if host["state"] != "completed":
            yield f"the burn-in on {host['host']}: {host['state']}, {host['reason']}"
