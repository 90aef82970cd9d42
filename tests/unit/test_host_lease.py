"""How long a host keeps its models without a head."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hosts_support import until

from obatchd.cluster.host import lease
from obatchd.cluster.host.lease import Lease


class _Host:
    """Implements :class:`obatchd.cluster.host.lease.LeaseListener`."""

    def __init__(self) -> None:
        self.testing = False
        self.over: list[float] = []
        self.unloads = 0

    def servers(self) -> dict[str, Any]:
        return {"gpu0": self}

    async def unload(self) -> None:
        self.unloads += 1

    def is_testing(self) -> bool:
        return self.testing

    def lease_over(self, lease_s: float) -> None:
        self.over.append(lease_s)


async def test_models_go_once_when_the_head_was_away_for_too_long_but_not_under_a_burn_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "_LOOK_S", 0.001)
    host, head, looks = _Host(), SimpleNamespace(away_s=0.0), 0

    class Settings:
        @property
        def lease_s(self) -> float:
            nonlocal looks
            looks += 1
            return 3600.0

    async def looked() -> None:
        before = looks
        await until(lambda: looks > before + 3)

    watch: Any = Lease(head, Settings(), host)  # type: ignore[arg-type]
    task = asyncio.create_task(watch.run())
    await looked()
    host.testing, head.away_s = True, 4000.0
    await looked()
    assert not host.unloads and not host.over
    host.testing = False
    await until(lambda: host.over)
    await looked()
    assert host.unloads == 1 and host.over == [3600.0]
    task.cancel()
