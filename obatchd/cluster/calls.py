"""Calls over a session: questions with one answer, or with one that comes in parts.

The method ``servers.load`` is the method ``load`` of the desk called ``servers``, with arguments and answer converted
to the types that it declares: a desk is a plain class whose public coroutines and asynchronous generators are there for
the other side.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import typing
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol, TypeVar

import attrs
import msgspec

from obatchd import errors, log
from obatchd.cluster import messages, plain
from obatchd.cluster.wire import PART_BYTES
from obatchd.errors import ClusterError, NotFoundError, ObatchError, ServerError

_log = log.get(__name__)
_MOST_OPEN = 1000  # calls of the other side that have no answer yet; one that has more is out of its mind
_ROOM_S = 0.05
_MOST_UNREAD_BYTES = 256 * 2**20  # of one answer in parts, beyond which nobody waits for whoever reads it
_MOST_WORDS = 64 * 1024  # characters of an error
_CODE = re.compile(r"[a-z0-9_]{1,60}")
_UNTRUE = ("untrue", "bad_frame")  # a desk says so of what it was told, and nothing of that is harmless
_NONE = msgspec.Raw(messages.encode(None))
T = TypeVar("T")
Desk = object


class Speaker(Protocol):
    """The part of a session that is used here."""

    peer: str

    def say(self, message: object) -> bool: ...
    def broken(self, error: ClusterError) -> None: ...
    @property
    def is_full(self) -> bool: ...


@attrs.define(eq=False)
class _Answers:
    """What has come to one call, and was not read yet."""

    method: str
    queue: asyncio.Queue[messages.Part | messages.Reply] = attrs.field(factory=asyncio.Queue)
    unread_bytes: int = 0

    async def next(self) -> messages.Part | messages.Reply:
        """Raises what the other side raised."""
        answer = await self.queue.get()
        self.unread_bytes -= len(answer.value) + PART_BYTES
        if isinstance(answer, messages.Reply) and (told := answer.error) is not None:
            kind = getattr(errors, told.kind, ObatchError)
            known = isinstance(kind, type) and issubclass(kind, ObatchError)
            raise (kind if known else ObatchError)(told.message, code=told.code)
        return answer

    def came(self, answer: messages.Part | messages.Reply) -> None:
        self.queue.put_nowait(answer)
        self.unread_bytes += len(answer.value) + PART_BYTES


@attrs.define(eq=False)
class Asking:
    """Our calls that wait for an answer."""

    _speaker: Speaker
    _number: int = attrs.field(default=0, init=False)
    _open: dict[int, _Answers] = attrs.field(factory=dict, init=False)
    _over: str = attrs.field(default="", init=False)  # why there are no answers any more

    async def call(self, method: str, kind: type[T], timeout_s: float | None, arguments: dict[str, Any]) -> T:
        number, answers = self._ask(method, arguments)
        try:
            async with asyncio.timeout(timeout_s):
                reply = await answers.next()
        except TimeoutError:
            self._speaker.say(messages.CancelCall(number))
            words = f"{self._speaker.peer} has not answered {method} within {timeout_s:g} s"
            raise ServerError(words, code="host_away") from None
        except asyncio.CancelledError:
            self._speaker.say(messages.CancelCall(number))
            raise
        finally:
            self._open.pop(number, None)
        return self._decoded(method, reply, kind)

    async def stream(self, method: str, kind: type[T], arguments: dict[str, Any]) -> AsyncGenerator[T, None]:
        number, answers = self._ask(method, arguments)
        ended = False
        try:
            while True:
                try:
                    answer = await answers.next()
                except ObatchError:
                    ended = True
                    raise
                if ended := isinstance(answer, messages.Reply):
                    return
                yield self._decoded(method, answer, kind)
        finally:
            self._open.pop(number, None)
            if not ended:
                self._speaker.say(messages.CancelCall(number))

    def _ask(self, method: str, arguments: dict[str, Any]) -> tuple[int, _Answers]:
        if self._over:
            raise _away(self._speaker.peer, self._over)
        self._number += 1
        answers = self._open[self._number] = _Answers(method)
        self._speaker.say(messages.Call(self._number, method, arguments))
        return self._number, answers

    def _decoded(self, method: str, answer: messages.Part | messages.Reply, kind: type[T]) -> T:
        """One that cannot be ends the session."""
        try:
            value = msgspec.msgpack.decode(answer.value, type=kind)
            plain.check(value)
        except (msgspec.MsgspecError, ClusterError) as failed:
            words = f"its answer to {method} is none: {failed}"
            self._speaker.broken(ClusterError(words, code="untrue"))
            raise ServerError(f"{self._speaker.peer} was cut off: {words}", code="host_away") from None
        return value

    def answered(self, message: messages.Part | messages.Reply) -> None:
        """Of a call that nobody waits for any more, it is dropped. Raises ClusterError where there was none, or the
        error in it is none."""
        if not 0 < message.id <= self._number:
            raise ClusterError(f"an answer to question {message.id}, which nobody asked", code="bad_frame")
        told = message.error if isinstance(message, messages.Reply) else None
        if told is not None and (len(told.message) > _MOST_WORDS or not _CODE.fullmatch(told.code)):
            raise ClusterError(f"an error that is none: {told.code[:60]!r}", code="bad_frame")
        if (answers := self._open.get(message.id)) is None:
            return
        answers.came(message)
        if answers.unread_bytes > _MOST_UNREAD_BYTES:
            del self._open[message.id]
            self._speaker.say(messages.CancelCall(message.id))
            words = f"the answer to {answers.method} comes faster than it is read"
            answers.came(_failed(message.id, ServerError(words, code="too_slow")))

    def over(self, reason: str) -> None:
        """The session has ended: no answer will come."""
        self._over = reason or "it has ended"
        away = _away(self._speaker.peer, self._over)
        for number, answers in self._open.items():
            answers.came(_failed(number, away))


def _away(peer: str, reason: str) -> ServerError:
    return ServerError(f"{peer} is away: {reason}", code="host_away")


def _failed(number: int, error: ObatchError) -> messages.Reply:
    told = messages.CallError(type(error).__name__, error.code, error.message[:_MOST_WORDS])
    return messages.Reply(number, _NONE, told)


@attrs.define(eq=False)
class Answering:
    """Calls of the other side."""

    _speaker: Speaker
    _desks: Mapping[str, Desk]
    _trusted: bool  # a question that cannot be is a mistake; else it is a lie, and ends the session
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
        lie = None
        try:
            reply = messages.Reply(call.id, await self._value(call))
        except ObatchError as failed:
            reply = _failed(call.id, failed)
            if isinstance(failed, ClusterError) and failed.code in _UNTRUE and not self._trusted:
                lie = failed
        except Exception as failed:  # noqa: BLE001 - logged; the caller is told, and the session goes on
            _log.exception("call_failed", peer=self._speaker.peer, method=call.method)
            reply = _failed(call.id, ClusterError(f"{call.method}: {type(failed).__name__}", code="defect"))
        self._speaker.say(reply)
        if lie is not None:
            self._speaker.broken(lie)

    async def _value(self, call: messages.Call) -> msgspec.Raw:
        desk, _, name = call.method.partition(".")
        method = getattr(self._desks.get(desk), name, None) if name and not name.startswith("_") else None
        if method is None:
            raise NotFoundError(f"there is no {call.method[:80]} here; update obatchd", code="no_method")
        answer = method(**_given(call, method))
        if not inspect.isasyncgen(answer):
            return msgspec.Raw(messages.encode(await answer))
        async for part in answer:
            self._speaker.say(messages.Part(call.id, msgspec.Raw(messages.encode(part))))
            while self._speaker.is_full:  # a log or a journal may be longer than the way is fast
                await asyncio.sleep(_ROOM_S)
        return _NONE


def _given(call: messages.Call, method: Any) -> dict[str, Any]:
    """The arguments that it knows, as the types that it declares. Raises ClusterError where one is none, or missing."""
    hints, known = typing.get_type_hints(method), inspect.signature(method).parameters
    try:
        for name, each in known.items():
            if each.default is each.empty and name not in call.arguments:
                raise ClusterError(f"{call.method}: {name} is missing", code="bad_frame")
        given = {
            name: msgspec.convert(call.arguments[name], hints.get(name, Any)) for name in known.keys() & call.arguments
        }
    except msgspec.ValidationError as failed:
        raise ClusterError(f"{call.method}: {failed}", code="bad_frame") from None
    plain.check(given)
    return given
