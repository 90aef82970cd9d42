"""Effects of the settings of slots: through the seams of dispatch, on a clock that moves by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dispatch_support import SMALL
from settings_support import reload
from tuning_support import Clock, Hall, TunedPort

from obatchd.simulator.config import Throughput


async def changed_again(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    """A server that is faster with each slot gets more of them."""
    clock = Clock()
    port = TunedPort("gpu0", {SMALL: Throughput([(1, 20.0), (64, 1280.0)])}, clock)
    hall = Hall(patch, clock, port, tune_pause_s=old)
    await hall.start()
    hall.fill(1, 30_000, SMALL)
    await hall.run(old / 2)
    assert [slots for _, _, slots in port.changes] == [16]
    reload(hall.settings, key, new)
    await hall.run(new)
    assert [slots for _, _, slots in port.changes] == [16, 32]
    await hall.dispatcher.stop()


TUNING = {"servers.tune_pause_s": (3600, 60, changed_again)}
