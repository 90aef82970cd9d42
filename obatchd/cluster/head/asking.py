"""Questions of the head to a joined host, as operators ask them: with an end, and in words that name the host."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.messages import ToHead
from obatchd.cluster.session import Session
from obatchd.errors import ServerError

ANSWER_S = 60.0
T = TypeVar("T")


async def ask(host: JoinedHost, method: str, kind: type[T], timeout_s: float | None = ANSWER_S, /, **given: Any) -> T:
    """The answer of a host.

    Raises what the host raises of :mod:`obatchd.errors`, and ServerError (``host_away``) where it is away, or does not
    answer in time.
    """
    session = _session(host)
    try:
        return await session.call(method, kind, timeout_s, **given)
    except msgspec.MsgspecError as error:
        raise _no_answer(host, session, method, error) from None


async def follow(host: JoinedHost, method: str, kind: type[T], /, **given: Any) -> AsyncGenerator[T, None]:
    """As :func:`ask`, of an answer that comes in parts; it ends with the session at the latest."""
    session = _session(host)
    try:
        async with aclosing(session.stream(method, kind, **given)) as parts:
            async for part in parts:
                yield part
    except msgspec.MsgspecError as error:
        raise _no_answer(host, session, method, error) from None


def _session(host: JoinedHost) -> Session[ToHead]:
    if host.session is None:
        raise ServerError(f"host {host.name} is away: {host.reason}", code="host_away")
    return host.session


def _no_answer(host: JoinedHost, session: Session[ToHead], method: str, error: Exception) -> ServerError:
    session.end(f"its answer to {method} is none: {error}")
    return ServerError(f"host {host.name} gave no answer to {method}, and was cut off: {error}", code="host_away")
