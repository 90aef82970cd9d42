"""One session with a joined host, from the head's challenge to its end."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Protocol

import attrs
import msgspec

from obatchd import __version__, log
from obatchd.cluster import messages, plain, wire
from obatchd.cluster.head import trust
from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.head.reporting import HostAlarms
from obatchd.cluster.messages import Accepted, Challenge, Hello, Refused, Terms, ToHead
from obatchd.cluster.session import Session
from obatchd.errors import ClusterError
from obatchd.times import skew

_log = log.get(__name__)
HELLO_S = 10.0
_STARTS = "it starts its servers"


class Reception(Protocol):
    """Decides on sessions; :class:`obatchd.cluster.head.hosts.Hosts`."""

    def may_come(self, host: JoinedHost) -> Refused | None:
        """Why a host that has said hello gets no session now."""
        ...

    def terms(self) -> Terms:
        """What the head decides now."""
        ...

    def came(self, attendance: Attendance, hello: Hello) -> None:
        """The session begins, and replaces an earlier one of the same host."""


@attrs.define(eq=False)
class Attendance:
    """Hears a host. Implements :class:`obatchd.cluster.session.Heard`."""

    host: JoinedHost
    _reception: Reception
    _alarms: HostAlarms
    session: Session[ToHead] = attrs.field(init=False)  # set by whoever makes it
    _nonce: bytes = attrs.field(factory=lambda: os.urandom(16), init=False)
    _hello: Hello | None = attrs.field(default=None, init=False)
    _over: bool = attrs.field(default=False, init=False)

    def begin(self) -> list[asyncio.TimerHandle]:
        """Challenge the host; timers that end the session, where it says nothing or its allocation is over."""
        self.session.say(Challenge(self._nonce, __version__))
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(HELLO_S, self._hello_is_late)]
        if (until_s := self.host.until_s) is not None:
            timers.append(loop.call_later(max(0.0, until_s - time.time()), self._allocation_is_over))
        return timers

    def _allocation_is_over(self) -> None:
        self.host.until_s = min(self.host.until_s or 0.0, time.time())  # timers ring a moment too early
        self.session.end("its allocation is over")

    def _hello_is_late(self) -> None:
        if self._hello is None:
            self.session.end(f"it has not said hello within {HELLO_S:g} s")

    def over(self, reason: str) -> None:
        """The session has ended, or is to count no more. Idempotent."""
        if self._over:
            return
        self._over = True
        self.session.end(reason)
        if self.host.session is self.session:
            self.host.lost(reason, self.session.code)
            if self.session.code:
                _log.error("host_untrue", host=self.host.name, code=self.session.code, reason=reason)
            else:
                _log.warning("host_away", host=self.host.name, reason=reason)

    # What the host says.

    def control(self, message: ToHead) -> None:
        if not self._over:
            self._hear(message)

    def frame(self, channel: int, data: bytes) -> None:
        if self._over:
            return
        if self.host.session is not self.session or channel == wire.CONTROL:
            raise trust.lie("a worker spoke before the session had begun")
        try:
            self.host.workers.heard(channel, data)
        except msgspec.MsgspecError as error:
            raise trust.lie(f"a worker sent what is no message: {error}") from None

    def drained(self) -> None:
        if not self._over:
            self.host.workers.drained()

    def _hear(self, message: ToHead) -> None:
        if self._hello is None:
            if not isinstance(message, Hello):
                raise ClusterError("it has to say hello first", code="bad_frame")
            self._greeted(message)
            return
        if self.host.session is not self.session:
            return  # refused, and about to be closed
        plain.check(message)
        match message:
            case messages.ServerNews():
                trust.check_server(message)
                self.host.server_told(message, self.session)
            case messages.ServerGone():
                self.host.server_gone(message.id)
            case messages.HostNews():
                trust.check_host(message)
                self.host.host_told(message)
            case messages.WorkerStarted():
                self.host.workers.started(message, self.session)
            case messages.WorkerEnded():
                self.host.workers.ended(message)
            case messages.AlarmNews():
                self._alarms.told(self.host.name, message)
            case _:
                raise ClusterError(
                    "it answered a question that it was not asked, or said hello twice", code="bad_frame"
                )

    def _greeted(self, hello: Hello) -> None:
        self._hello = hello
        if (refused := self._unfit(hello) or self._reception.may_come(self.host)) is not None:
            _log.warning("host_refused", host=self.host.name, code=refused.code, reason=refused.message)
            if self.host.session is None:
                self.host.reason, self.host.code = refused.message, refused.code
            self.session.say(refused)
            self.session.end(refused.message)
            return
        if hello.asks:
            self._asked(hello)
            return
        self._reception.came(self, hello)
        self.session.say(Accepted(self._reception.terms()))
        _log.info("host_came", host=self.host.name, version=hello.version, by=hello.allocation or "itself")
        if skew(self.host.skew_s):
            _log.warning("host_clock", host=self.host.name, skew_s=round(self.host.skew_s, 1))

    def _asked(self, hello: Hello) -> None:
        """A host at its first start, which comes back with servers."""
        self.session.say(Accepted(self._reception.terms()))
        self.session.end(_STARTS)
        if self.host.session is None:
            self.host.reason, self.host.code = _STARTS, ""
        _log.info("host_starts", host=self.host.name, version=hello.version)

    def _unfit(self, hello: Hello) -> Refused | None:
        """Why a host that says this can have no session."""
        try:
            trust.check_hello(hello)
        except ClusterError as lie:
            return Refused(lie.code, lie.message, final=True)
        if hello.nonce != self._nonce:
            return Refused("replayed", "this hello answers another challenge")
        if hello.name != self.host.name:
            words = f"the credential is of host {self.host.name}, and this one calls itself {hello.name[:60]!r}"
            return Refused("wrong_name", f"{words}: run obatchd-join again on it", final=True)
        if hello.protocol != messages.PROTOCOL or _minor(hello.version) != _minor(__version__):
            older = "the host" if _order(hello.version) < _order(__version__) else "the head"
            newer = max(hello.version, __version__, key=_order)
            return Refused("version", (
                f"host {self.host.name} has obatchd {hello.version[:40]}, the head {__version__}: only the last number "
                f"may differ. On {older}: sudo apt install ./obatchd_{newer[:40]}_*.deb, or pipx install --force "
                f"'obatchd=={newer[:40]}'"
            ))  # fmt: skip
        return None


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:3] if part.isdecimal() and len(part) < 10]
