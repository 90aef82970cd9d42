"""Requests that get seeds: repeated ones, and those that ask for ``n`` answers as one result.

A request with ``n`` has one row in the store and one record, whatever ``n`` is. So it has all its answers or
none, also where the machine goes down between two of them.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from obatchd.dispatch.protocol import JobContext
from obatchd.dispatch.records import Found
from obatchd.jobs.formats.request import Request
from obatchd.ollama.client import Answer

Ask = Callable[[Request], Awaitable[Found]]
_SEED_BYTES = 4
_SEED_MASK = 2**31 - 1


class SlotLender(Protocol):
    """Lends slots that nobody needs; :class:`obatchd.dispatch.worker.worker.Worker`."""

    @property
    def wanted(self) -> bool:
        """Whether a request waits for a slot that is lent."""

    def borrow(self) -> bool:
        """Take a slot where one is free and no request waits; whether there was one."""

    def give_back(self) -> None:
        """End the use of a slot that was borrowed."""


def seeds_of(request: Request, context: JobContext, label: str, number: int) -> list[int]:
    """The seed of each answer that the request ``label`` asks for; ``number`` is that of a repeated one, else 0.

    A seed that the request or its job gives is that of the first answer, and each further answer has the next. Without
    one, seeds are drawn from the ids of job and request, so that a job that is taken up again asks the same.
    """
    given = (context.options | request.options).get("seed")
    if isinstance(given, int) and given >= 0:  # Ollama takes a negative one for none
        first = given + max(0, number - 1) * request.n
        return [first + index for index in range(request.n)]
    return [_drawn(f"{context.name}\0{label}\0{index}") for index in range(request.n)]


def _drawn(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_SEED_BYTES]) & _SEED_MASK


async def several(ask: Ask, request: Request, seeds: Sequence[int], lender: SlotLender) -> Found:
    """The answers with ``seeds`` as one; where one of them fails, its fault.

    They are asked for one after the other, and in free slots of the server beside each other.
    """
    answers = _Answers(ask, request, seeds, lender)
    await answers.gather()
    return answers.found[0] if len(seeds) == 1 else _together(answers.found, len(seeds))


class _Answers:
    """The answers of one request while they come."""

    def __init__(self, ask: Ask, request: Request, seeds: Sequence[int], lender: SlotLender) -> None:
        self.found: dict[int, Found] = {}  # by index
        self._ask = ask
        self._request = request
        self._left = list(enumerate(seeds))[::-1]
        self._lender = lender
        self._failed = False
        self._beside: set[asyncio.Task[None]] = set()  # in borrowed slots

    async def gather(self) -> None:
        """Ask until all have come or one has failed; raises CancelledError where it is told to end."""
        try:
            while self._left and not self._failed:
                while len(self._left) > 1 and self._lender.borrow():
                    task = asyncio.create_task(self._in_borrowed_slot(*self._left.pop()))
                    task.add_done_callback(self._returned)  # also of one that ends before it begins
                    self._beside.add(task)
                await self._one(*self._left.pop())
            waiting = set(self._beside)
            while waiting and not self._failed:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # a defect in it
        finally:
            for task in self._beside:
                task.cancel()
            await asyncio.gather(*self._beside, return_exceptions=True)

    async def _in_borrowed_slot(self, index: int, seed: int) -> None:
        await self._one(index, seed)
        while self._left and not self._failed and not self._lender.wanted:
            await self._one(*self._left.pop())

    def _returned(self, _: asyncio.Task[None]) -> None:
        self._lender.give_back()

    async def _one(self, index: int, seed: int) -> None:
        options = self._request.options | {"seed": seed}
        answer, extra = await self._ask(msgspec.structs.replace(self._request, options=options))
        self.found[index] = answer, {**extra, "seed": seed}
        self._failed |= answer.fault is not None


def _together(by_index: Mapping[int, Found], wanted: int) -> Found:
    """All ``wanted`` answers as one, or the first that failed, with the cost of those that came."""
    found = [by_index[index] for index in sorted(by_index)]
    answers = [answer for answer, _ in found]
    cost: dict[str, Any] = {
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "response_tokens": sum(answer.response_tokens for answer in answers),
        "eval_s": sum(answer.eval_s for answer in answers),
        "wait_s": sum(answer.wait_s for answer in answers),
        "prompt_s": sum(answer.prompt_s for answer in answers),
    }
    for index in sorted(by_index):
        answer, extra = by_index[index]
        if answer.fault is not None:
            words = f"answer {index + 1} of {wanted}: {answer.fault.message}"
            return answer._replace(fault=answer.fault._replace(message=words), **cost), extra
    first, shared = answers[0], {**found[0][1]}
    del shared["seed"]  # each choice has its own
    if notes := [note for _, extra in found for note in extra.get("notes", ())]:
        shared["notes"] = list(dict.fromkeys(notes))
    if "ungrounded" in shared:
        shared["ungrounded"] = [value for _, extra in found for value in extra.get("ungrounded", ())]
    shared["choices"] = [_choice(index, *one) for index, one in enumerate(found)]
    cut = any(answer.done_reason == "length" for answer in answers)
    return first._replace(done_reason="length" if cut else first.done_reason, **cost), shared


def _choice(index: int, answer: Answer, extra: dict[str, Any]) -> dict[str, Any]:
    """One of several answers in their record."""
    choice: dict[str, Any] = {"index": index, "response": answer.text}
    if answer.think:
        choice["think"] = answer.think
    choice |= {name: value for name, value in extra.items() if name != "notes"}
    return choice | {
        "prompt_tokens": answer.prompt_tokens,
        "response_tokens": answer.response_tokens,
        "done_reason": answer.done_reason,
        "truncated": answer.done_reason == "length",
    }
