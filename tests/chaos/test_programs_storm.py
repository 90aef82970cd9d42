"""Programs at work over HTTP while their daemon dies again and again: each batch comes about once, each line once."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import openai
import pytest
from daemon_support import Daemon, prompts, wait_for
from openai import OpenAI
from programs_support import CHAT, OVER, Programs, over_http, questions

KILLS, PROGRAMS, BATCHES = 8, 3, 5


class Program(threading.Thread):
    """Makes batches one after the other, cancels some, and tries everything again as that client does by itself."""

    def __init__(self, found: Programs, number: int, seed: int) -> None:
        super().__init__()
        self._client: OpenAI = found.client(max_retries=30)
        self._number, self._random = number, random.Random(seed)
        self.made: dict[str, int] = {}  # lines, by id of the batch
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self._client:
                for turn in range(BATCHES):
                    self._make(f"p{self._number}t{turn}", self._random.randint(1, 120))
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def _make(self, name: str, lines: int) -> None:
        file = self._client.files.create(file=(f"{name}.jsonl", questions(lines, name)), purpose="batch").id
        batch = self._client.batches.create(
            input_file_id=file, endpoint=CHAT, completion_window="24h", metadata={"name": name}
        )
        self.made[batch.id] = lines
        if self._random.random() < 0.3:
            with contextlib.suppress(openai.ConflictError):  # it was over already, or not read yet
                self._client.batches.cancel(batch.id)
        if self._random.random() < 0.5:
            self._delete_file(file)

    def _delete_file(self, file: str) -> None:
        """Tried again as the client does by itself. It is gone before only where the answer to a try got lost."""
        once, lost = self._client.with_options(max_retries=0), False

        def deleted() -> bool:
            nonlocal lost
            try:
                once.files.delete(file)
            except openai.NotFoundError:
                if not lost:
                    raise
            except (openai.APIConnectionError, openai.InternalServerError):
                lost = True
                return False
            return True

        wait_for(deleted, 60, "the file is deleted")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_storm_of_programs(make_daemon: Callable[..., Daemon], seed: int) -> None:
    found = over_http(make_daemon, simulator={"service_s": {"kind": "fixed", "value": 0.01}})
    d, chance = found.d.start().ready(), random.Random(seed)
    assert found.key
    programs = [Program(found, number, seed * 100 + number) for number in range(PROGRAMS)]
    for program in programs:
        program.start()
    dropped = []
    for kill in range(KILLS):
        dropped += d.drop_all({f"drop{kill}.jsonl": prompts(10, f"d{kill}")})
        time.sleep(chance.uniform(0.1, 1.2))  # the plan of this storm, and no wait for anything
        d.kill()
        d.start()
    for program in programs:
        program.join(120)
        assert not program.is_alive() and program.error is None, repr(program.error)
    made = {batch: lines for program in programs for batch, lines in program.made.items()}
    assert len(made) == PROGRAMS * BATCHES
    with found.client() as client:
        wait_for(lambda: all(batch.status in OVER for batch in client.batches.list()), 90, "every batch is over")
        listed = {batch.id: batch for batch in client.batches.list()}
        assert listed.keys() == made.keys(), "a create made several batches, or none"
        for batch, lines in made.items():
            check(client, listed[batch], lines)
    for name in dropped:
        d.done(name).check()
    assert list((d.spool / "work" / "uploads").iterdir()) == []
    assert d.stop() == 0


def check(client: OpenAI, batch: Any, lines: int) -> None:
    """Every line has one outcome, in the file where it belongs."""
    assert batch.status in ("completed", "cancelled"), batch
    name, found = batch.metadata["name"], Counter[str]()
    counts = []
    for file in (batch.output_file_id, batch.error_file_id):
        part = [json.loads(line)["custom_id"] for line in client.files.content(file).text.splitlines()] if file else []
        found.update(part)
        counts.append(len(part))
    assert found == Counter(f"{name}-{number}" for number in range(lines))
    assert (batch.request_counts.total, batch.request_counts.completed) == (lines, counts[0])
