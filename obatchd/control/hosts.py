"""The part of the control API about hosts that joined, under ``/v1/hosts``. For administrators."""

from __future__ import annotations

import math
from typing import Protocol

import msgspec
from aiohttp import web
from attrs import define

from obatchd import errors
from obatchd.control.answer import CALLER, answer, object_sent
from obatchd.control.auth import Caller
from obatchd.documents.hosts import Forgotten, HostDoor, HostEntry, HostList, HostsExamined, NewLink
from obatchd.words import misfit

_LEAST_VALID_S, _MOST_VALID_S = 60.0, 366 * 86400.0


class JoinedHostOperations(Protocol):
    """Hosts that joined; :class:`obatchd.operations.hosts.JoinedHostCommands`.

    Where hosts cannot join, each but ``all``, ``door`` and ``examine`` raises ClusterError (``no_door``); NotFoundError
    where there is no such host.
    """

    def all(self) -> HostList:
        """Every host, here or away."""

    def door(self) -> HostDoor | None:
        """Where hosts reach this head; None: they cannot join."""

    async def examine(self) -> HostsExamined:
        """What each host that is here finds on its own machine; it takes as long as the slowest, 50 s at most."""

    async def code(self, caller: Caller, head: str) -> NewLink:
        """A link for one host; ``head`` is where that one reaches this one, empty: where it listens."""

    async def enrol(self, caller: Caller, valid_s: float, head: str) -> NewLink:
        """A link for many hosts."""

    async def drain(self, caller: Caller, name: str) -> HostEntry:
        """Give a host no new work; after a few seconds it returns how far that is."""

    async def resume(self, caller: Caller, name: str) -> HostEntry:
        """End ``drain``."""

    async def forget(self, caller: Caller, name: str) -> Forgotten:
        """Revoke a host's credential and end its session."""

    async def revoke(self, caller: Caller, enrolment: str) -> Forgotten:
        """Revoke an enrolment, and forget the hosts that joined by it."""


class LinkAsked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/hosts/codes`` and, with ``valid_s``, of ``POST /v1/hosts/enrolments``."""

    head: str = ""
    valid_s: float = 7 * 86400.0


@define(eq=False)
class HostRoutes:
    """The routes."""

    _hosts: JoinedHostOperations

    def for_administrators(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/hosts", self._all),
            web.get("/v1/hosts/findings", self._findings),
            web.post("/v1/hosts/codes", self._code),
            web.post("/v1/hosts/enrolments", self._enrol),
            web.delete("/v1/hosts/enrolments/{enrolment}", self._revoke),
            web.post("/v1/hosts/{host}/drain", self._drain),
            web.post("/v1/hosts/{host}/resume", self._resume),
            web.delete("/v1/hosts/{host}", self._forget),
        ]

    async def _all(self, request: web.Request) -> web.Response:
        return answer(self._hosts.all())

    async def _findings(self, request: web.Request) -> web.Response:
        return answer(await self._hosts.examine())

    async def _code(self, request: web.Request) -> web.Response:
        return answer(await self._hosts.code(request[CALLER], (await _asked(request)).head))

    async def _enrol(self, request: web.Request) -> web.Response:
        asked = await _asked(request)
        if not math.isfinite(asked.valid_s) or not _LEAST_VALID_S <= asked.valid_s <= _MOST_VALID_S:
            raise errors.ConfigError("valid_s must be from a minute to a year, in seconds", code="bad_request")
        return answer(await self._hosts.enrol(request[CALLER], asked.valid_s, asked.head))

    async def _revoke(self, request: web.Request) -> web.Response:
        return answer(await self._hosts.revoke(request[CALLER], request.match_info["enrolment"]))

    async def _drain(self, request: web.Request) -> web.Response:
        return answer(await self._hosts.drain(request[CALLER], request.match_info["host"]))

    async def _resume(self, request: web.Request) -> web.Response:
        return answer(await self._hosts.resume(request[CALLER], request.match_info["host"]))

    async def _forget(self, request: web.Request) -> web.Response:
        return answer(await self._hosts.forget(request[CALLER], request.match_info["host"]))


async def _asked(request: web.Request) -> LinkAsked:
    if not request.can_read_body:
        return LinkAsked()
    try:
        return msgspec.convert(await object_sent(request), LinkAsked)
    except msgspec.ValidationError as error:
        raise errors.ConfigError(f"the body: {misfit(error)}", code="bad_request") from None
