"""Questions of the head to a joined host, as operators ask them: with an end, and in words that name the host."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.messages import ToHead
from obatchd.cluster.session import Session
from obatchd.errors import ClusterError, ServerError

ANSWER_S = 60.0
T = TypeVar("T")


async def ask(host: JoinedHost, method: str, kind: type[T], timeout_s: float | None = ANSWER_S, /, **given: Any) -> T:
    """The answer of a host.

    Raises what the host raises of :mod:`obatchd.errors`, and ServerError (``host_away``) where it is away, does not
    answer in time, or answers what cannot be.
    """
    return await _session(host).call(method, kind, timeout_s, **given)


async def follow(host: JoinedHost, method: str, kind: type[T], /, **given: Any) -> AsyncGenerator[T, None]:
    """As :func:`ask`, of an answer that comes in parts; it ends with the session at the latest."""
    async with aclosing(_session(host).stream(method, kind, **given)) as parts:
        async for part in parts:
            yield part


def lied(host: JoinedHost, lie: ClusterError) -> ServerError:
    """End the session with a host whose answer is of the right kind, and cannot be; the error for whoever asked."""
    if host.session is not None:
        host.session.broken(lie)
    return ServerError(f"host {host.name} was cut off: {lie.message}", code="host_away")


def _session(host: JoinedHost) -> Session[ToHead]:
    if host.session is None:
        raise ServerError(f"host {host.name} is away: {host.reason}", code="host_away")
    return host.session
