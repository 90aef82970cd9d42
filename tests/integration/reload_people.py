"""Effects of the settings of interactive requests and of families: through the seams of dispatch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dispatch_support import LARGE, SMALL, Port, Rig, settle
from settings_support import reload
from test_switching import Clock, look

from obatchd.dispatch import switching
from obatchd.dispatch.interactive.lease import Lease, Question
from obatchd.dispatch.protocol import INTERACTIVE
from obatchd.errors import InteractiveError
from obatchd.jobs.lane import Lane, Pending

PERSON = 1000
Seen = Callable[[Rig], int]


async def rig_with(key: str, value: Any, slots: int = 4) -> Rig:
    return await Rig(Port("gpu0", slots, SMALL), **{key.rpartition(".")[2]: value}).start()


async def ask(rig: Rig, prompt: str, model: str = "small") -> Lease:
    context = {"small": 4096, "large": 8192}[model]
    raw = json.dumps({"prompt": prompt, "model": model, "context_length": context}).encode()
    lease = rig.dispatcher.desk.ask(Question(raw), PERSON)
    await settle()
    return lease


async def turn_over(rig: Rig) -> None:
    """Let all that is at the server end, and what comes then begin."""
    worker = rig.worker("gpu0")
    worker.begin(*(key for key in worker.held if key not in worker.started))
    worker.end_all(list(worker.held), took_s=1.0)
    await settle()
    await look(rig)


async def slots_left_free(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    """A batch has all slots and one request that waits at the worker; then it leaves some free."""
    rig = await rig_with(key, old)
    await rig.add(1, 1000)
    assert len(rig.worker("gpu0").held) == 5 - old
    reload(rig.settings, key, new)
    await turn_over(rig)
    assert len(rig.worker("gpu0").held) == 4 - new
    await rig.dispatcher.stop()


async def shared(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    """The slots that one person's requests have beside a batch of an owner who has used less."""
    rig = await rig_with(key, old)
    await rig.add(1, 1000, owner=2)
    await turn_over(rig)
    first = await ask(rig, "first")
    rig.queue.charge(first.taken, 1e6)  # so that he has no turn beyond his share
    for number in range(20):
        await ask(rig, f"question {number}")

    def asked() -> int:
        return sum(1 for job, _ in rig.worker("gpu0").held if job == INTERACTIVE)

    await turn_over(rig)
    assert asked() == 4 * old
    reload(rig.settings, key, new)
    await turn_over(rig)
    assert asked() == 4 * new
    await rig.dispatcher.stop()


async def asked_for_a_model(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    """A busy server changes its model for a person who waits."""
    clock = Clock()
    patch.setattr(switching, "time", clock)
    rig = await rig_with(key, old)
    await rig.add(1, 1000)
    await turn_over(rig)
    await ask(rig, "why?", model="large")
    clock.now_s += 2 * new
    await turn_over(rig)
    assert rig.ports["gpu0"].loaded == SMALL
    reload(rig.settings, key, new)
    await look(rig)
    assert rig.ports["gpu0"].loaded == LARGE
    await rig.dispatcher.stop()


async def taken(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    """How many requests of one person may wait: half of the queue."""
    rig = await rig_with(key, old)

    async def waiting() -> int:
        for number in range(100):
            try:
                await ask(rig, f"question {number}", model="large")
            except InteractiveError as error:
                assert error.code == "queue_full"
                return len(rig.dispatcher.desk.waiting)
        raise AssertionError("a hundred were taken")

    await rig.add(1, 1000)  # of another model, so that questions wait
    assert await waiting() == old // 2
    reload(rig.settings, key, new)
    assert await waiting() == new // 2
    await rig.dispatcher.stop()


async def kept_together(directory: Path, patch: pytest.MonkeyPatch, key: str, old: Any, new: Any) -> None:
    """Eight documents with ten questions each, in the order of the questions: what the four slots work on."""
    rig = await rig_with(key, old)
    lane = rig.queue.add_lane(Lane(1, 0, 1, SMALL, "normal", 1000.0))
    pending = [Pending(line, b'{"id":"x"}', family=line % 8) for line in range(1, 81)]
    rig.queue.extend(lane, len(pending), pending)
    rig.dispatcher.wake()
    await settle()

    def documents() -> set[int]:
        return {line % 8 for _, line in rig.worker("gpu0").held}

    before = documents()
    await turn_over(rig)
    assert documents() != before, "other documents are next in order"
    reload(rig.settings, key, new)
    await turn_over(rig)
    before = documents()
    await turn_over(rig)
    assert documents() == before and len(before) == 4
    await rig.dispatcher.stop()


PEOPLE = {
    "dispatch.interactive_slots": (0, 2, slots_left_free),
    "dispatch.interactive_share": (0.25, 0.75, shared),
    "dispatch.interactive_switch_after_s": (1e6, 10, asked_for_a_model),
    "dispatch.interactive_queue": (4, 20, taken),
    "dispatch.families": ("off", "auto", kept_together),
}
