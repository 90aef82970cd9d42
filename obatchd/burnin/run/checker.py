"""Carries out the output check of :mod:`obatchd.burnin.verdict.canary` on servers under load."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence

import attrs

from obatchd import log
from obatchd.burnin.journal.records import Canary, Step
from obatchd.burnin.run.load import ModelLoad
from obatchd.burnin.run.preparing import up_soon
from obatchd.burnin.run.recording import Recording
from obatchd.burnin.verdict import canary
from obatchd.burnin.verdict.canary import Answer, Reference
from obatchd.documents.burnin.plan import Plan
from obatchd.errors import ObatchError, ServerError
from obatchd.tasks import TaskOwner, TaskSet

_log = log.get(__name__)
_PROMPT = (
    "The following is a careful description of how a clock is built, part by part, from the mainspring to the hands, "
    "with the number of teeth of every wheel:\n1."
)
_FLUSH = "{number} flush {number}: forget what was before and say one word."
_TOKENS = 64
_SEED = 20240607
_TIMEOUT_S = 300.0
_SIBLINGS_ASKED = 2
_LOAD_PER_CHECK = 9.0  # time under load for each second of an output check: they are a tenth of a phase at most


@attrs.define(eq=False)
class Checker:
    """The output check of one server; a finding concerns all of its GPUs."""

    load: ModelLoad
    _recording: Recording  # takes the outcome of each step
    reference: Reference | None = attrs.field(default=None, init=False)

    async def calibrate(self, runs: int) -> None:
        """Learn the reference from ``runs`` answers; the first after a load is thrown away."""
        async with self.load.emptied():
            answers = [answer for _ in range(runs + 1) if (answer := await self._answer()) is not None]
        found = canary.calibrate(answers[1:])
        self.reference = found.reference
        if found.reference is None:
            self._tell("off", found.text)
            return
        self._tell("calibrated", found.text, found.reference.answer)
        for _ in range(found.strays):
            self._tell("mismatch", "differed during the calibration")

    async def check(self, every: Sequence[Checker]) -> None:
        """One output check, and its follow-up when the answer differs."""
        agreed = await self._agrees()
        if agreed is None:
            return
        if agreed[0]:
            self._tell("match", "", agreed[1])
            return
        self._tell("mismatch", "the answer differs from that of the calibration", agreed[1])
        repeats = [again[0] for _ in range(canary.REPEATS) if (again := await self._agrees()) is not None]
        # One server at a time is emptied, so two checks that ask each other cannot wait for each other.
        siblings = [other for other in self._alike(every) if other is not self and other.reference is not None]
        others = [other[0] for sibling in siblings[:_SIBLINGS_ASKED] if (other := await sibling._agrees()) is not None]
        settled = canary.settle(repeats, others)
        _log.warning("burnin_output_differs", server=self.load.server.id, outcome=settled.step, reason=settled.text)
        self._tell(settled.step, settled.text)

    def differs_from_all(self, every: Sequence[Checker]) -> None:
        """Tell it if its reference is another than that of all servers like it, which agree with each other."""
        references = {other.load.server.id: other.reference for other in self._alike(every) if other.reference}
        if canary.outsider(references) == self.load.server.id:
            count = len(references) - 1
            self._tell("confirmed", f"it repeats itself, but all {count} others of its kind agree on another answer")

    def _alike(self, every: Sequence[Checker]) -> list[Checker]:
        return [other for other in every if other.load.comparable == self.load.comparable]

    async def _agrees(self) -> tuple[bool, Answer] | None:
        if self.reference is None:
            return None
        async with self.load.emptied():
            answer = await self._answer()
        return None if answer is None else (canary.agrees(self.reference, answer), answer)

    async def _answer(self) -> Answer | None:
        """Flush every slot, then ask. None when the server failed, which its supervision deals with."""
        load = self.load
        options = load.server.load_options(load.profile) | {"temperature": 0, "top_k": 1, "seed": _SEED}
        api, model = load.server.api, load.profile.model
        flush, ask = options | {"num_predict": 1}, options | {"num_predict": _TOKENS}
        prompts = [_FLUSH.format(number=number) for number in range(load.server.slots)]
        try:
            await asyncio.gather(*(api.generate(model, prompt, flush, _TIMEOUT_S) for prompt in prompts))
            answer = await api.generate(model, _PROMPT, ask, _TIMEOUT_S, logprobs=True)
        except ServerError as error:
            _log.warning("burnin_canary_failed", server=load.server.id, code=error.code, reason=error.message)
            return None
        load.server.progress()
        digest = hashlib.sha256(answer.response.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return Answer(digest, tuple(entry.logprob for entry in answer.logprobs or ()))

    def _tell(self, step: Step, text: str = "", answer: Answer | None = None) -> None:
        difference = canary.deviation(self.reference.answer, answer) if answer and self.reference else None
        digest = answer.digest if answer else ""
        for gpu in self.load.gpus:
            self._recording.note(Canary(time.time(), gpu, step, text, digest, difference))


class Checks:
    """The output checks of a run, while nothing but the model is on the GPUs."""

    def __init__(self, plan: Plan, recording: Recording, owner: TaskOwner) -> None:
        self._plan = plan
        self._recording = recording
        self._tasks = TaskSet(owner)
        self._checkers: list[Checker] = []

    async def calibrate(self, loads: Sequence[ModelLoad]) -> None:
        """Learn the answers of each server; one that is not up now goes without."""
        self._checkers = [Checker(load, self._recording) for load in loads]
        await asyncio.gather(*(self._calibrate(checker) for checker in self._checkers))
        for checker in self._checkers:
            checker.differs_from_all(self._checkers)

    async def _calibrate(self, checker: Checker) -> None:
        server = checker.load.server
        try:
            await up_soon(server)
            await server.load(checker.load.profile)
        except ObatchError as error:
            _log.warning("burnin_not_calibrated", server=server.id, code=error.code, reason=error.message)
            return
        await checker.calibrate(self._plan.canary_runs)

    def begin(self) -> None:
        """Check regularly."""
        for place, checker in enumerate(self._checkers):
            self._tasks.start(self._regularly(place, checker), f"burnin-check-{checker.load.server.id}")

    async def stop(self) -> None:
        await self._tasks.stop()

    async def _regularly(self, place: int, checker: Checker) -> None:
        # Not all at once: the others are to stay under load meanwhile.
        await asyncio.sleep(self._plan.canary_s * (place + 1) / (len(self._checkers) + 1))
        while True:
            begun_s = time.monotonic()
            await checker.check(self._checkers)
            took_s = time.monotonic() - begun_s
            await asyncio.sleep(max(self._plan.canary_s, _LOAD_PER_CHECK * took_s))
