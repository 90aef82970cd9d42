"""Calls over a session: questions with one answer, or with one that comes in parts.

The method ``servers.load`` is the method ``load`` of the desk called ``servers``, with arguments and answer converted
to the types that it declares: a desk is a plain class whose public coroutines and asynchronous generators are there for
the other side.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol, TypeVar

import attrs
import msgspec

from obatchd import errors, log
from obatchd.cluster import messages
from obatchd.errors import ClusterError, NotFoundError, ObatchError, ServerError

_log = log.get(__name__)
_MOST_OPEN = 1000  # calls of the other side that have no answer yet; one that has more is out of its mind
_ROOM_S = 0.05
_NONE = msgspec.Raw(messages.encode(None))
T = TypeVar("T")
Desk = object


class Speaker(Protocol):
    """The part of a session that is used here."""

    peer: str

    def say(self, message: object) -> bool: ...
    @property
    def is_full(self) -> bool: ...


@attrs.define(eq=False)
class Asking:
    """Our calls that wait for an answer."""

    _speaker: Speaker
    _number: int = attrs.field(default=0, init=False)
    _open: dict[int, asyncio.Queue[messages.Part | messages.Reply]] = attrs.field(factory=dict, init=False)
    _over: str = attrs.field(default="", init=False)  # why there are no answers any more

    async def call(self, method: str, kind: type[T], timeout_s: float | None, arguments: dict[str, Any]) -> T:
        number, answers = self._ask(method, arguments)
        try:
            async with asyncio.timeout(timeout_s):
                reply = await answers.get()
        except TimeoutError:
            self._speaker.say(messages.CancelCall(number))
            words = f"{self._speaker.peer} has not answered {method} within {timeout_s:g} s"
            raise ServerError(words, code="host_away") from None
        except asyncio.CancelledError:
            self._speaker.say(messages.CancelCall(number))
            raise
        finally:
            self._open.pop(number, None)
        _raise(reply)
        return msgspec.msgpack.decode(reply.value, type=kind)

    async def stream(self, method: str, kind: type[T], arguments: dict[str, Any]) -> AsyncGenerator[T, None]:
        number, answers = self._ask(method, arguments)
        ended = False
        try:
            while True:
                answer = await answers.get()
                ended = isinstance(answer, messages.Reply)
                _raise(answer)
                if ended:
                    return
                yield msgspec.msgpack.decode(answer.value, type=kind)
        finally:
            self._open.pop(number, None)
            if not ended:
                self._speaker.say(messages.CancelCall(number))

    def _ask(self, method: str, arguments: dict[str, Any]) -> tuple[int, asyncio.Queue[messages.Part | messages.Reply]]:
        if self._over:
            raise _away(self._speaker.peer, self._over)
        self._number += 1
        answers = self._open[self._number] = asyncio.Queue()
        self._speaker.say(messages.Call(self._number, method, arguments))
        return self._number, answers

    def answered(self, message: messages.Part | messages.Reply) -> None:
        """Of a call that nobody waits for any more, it is dropped."""
        if (answers := self._open.get(message.id)) is not None:
            answers.put_nowait(message)

    def over(self, reason: str) -> None:
        """The session has ended: no answer will come."""
        self._over = reason or "it has ended"
        away = _away(self._speaker.peer, self._over)
        error = messages.CallError("ServerError", away.code, away.message)
        for number, answers in self._open.items():
            answers.put_nowait(messages.Reply(number, _NONE, error))


def _away(peer: str, reason: str) -> ServerError:
    return ServerError(f"{peer} is away: {reason}", code="host_away")


def _raise(answer: messages.Part | messages.Reply) -> None:
    if isinstance(answer, messages.Reply) and (told := answer.error) is not None:
        kind = getattr(errors, told.kind, ObatchError)
        known = isinstance(kind, type) and issubclass(kind, ObatchError)
        raise (kind if known else ObatchError)(told.message, code=told.code)


@attrs.define(eq=False)
class Answering:
    """Calls of the other side."""

    _speaker: Speaker
    _desks: Mapping[str, Desk]
    _tasks: dict[int, asyncio.Task[None]] = attrs.field(factory=dict, init=False)

    def asked(self, message: messages.Call | messages.CancelCall) -> None:
        if isinstance(message, messages.CancelCall):
            if (task := self._tasks.get(message.id)) is not None:
                task.cancel()
            return
        if len(self._tasks) >= _MOST_OPEN or message.id in self._tasks:
            raise ClusterError(f"more than {_MOST_OPEN} questions at once, or one twice", code="bad_frame")
        task = self._tasks[message.id] = asyncio.create_task(self._answer(message), name=message.method)
        task.add_done_callback(lambda _: self._tasks.pop(message.id, None))

    async def stop(self) -> None:
        """Give up whatever is not answered."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, call: messages.Call) -> None:
        value, error = _NONE, None
        try:
            value = await self._value(call)
        except ObatchError as failed:
            error = messages.CallError(type(failed).__name__, failed.code, failed.message)
        except msgspec.ValidationError as failed:
            error = messages.CallError("ClusterError", "bad_call", f"{call.method}: {failed}")
        except Exception as failed:  # noqa: BLE001 - logged; the caller is told, and the session goes on
            _log.exception("call_failed", peer=self._speaker.peer, method=call.method)
            error = messages.CallError("ClusterError", "defect", f"{call.method}: {type(failed).__name__}")
        self._speaker.say(messages.Reply(call.id, value, error))

    async def _value(self, call: messages.Call) -> msgspec.Raw:
        desk, _, name = call.method.partition(".")
        method = getattr(self._desks.get(desk), name, None) if name and not name.startswith("_") else None
        if method is None:
            raise NotFoundError(f"there is no {call.method} here; update obatchd", code="no_method")
        hints = typing.get_type_hints(method)
        known = inspect.signature(method).parameters.keys() & call.arguments.keys()
        given = {name: msgspec.convert(call.arguments[name], hints.get(name, Any)) for name in known}
        answer = method(**given)
        if not inspect.isasyncgen(answer):
            return msgspec.Raw(messages.encode(await answer))
        async for part in answer:
            self._speaker.say(messages.Part(call.id, msgspec.Raw(messages.encode(part))))
            while self._speaker.is_full:  # a log or a journal may be longer than the way is fast
                await asyncio.sleep(_ROOM_S)
        return _NONE
