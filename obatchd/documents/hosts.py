"""Hosts that joined, and what lets others join."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from obatchd.documents.engine import EngineState


class HostDoor(msgspec.Struct):
    """Where hosts reach the head."""

    address: str  # host:port
    fingerprint: str  # of its certificate, sha256:…; empty: there is none
    problem: str  # why they cannot; empty: they can


class HostEntry(msgspec.Struct):
    """One host."""

    name: str
    state: str  # here, away, draining, leaving
    reason: str  # of its state
    since: str  # when that began
    gpus: int
    servers: int
    ready: int  # servers
    version: str  # of its obatchd; empty: it has not come since the head started
    allocation: str  # what started it, such as "Slurm job 4711"; empty: itself
    drained: str  # why an administrator gives it no work; empty: it gets some
    enrolment: str  # by which it joined; empty: by a code
    joined_at: str | None
    until: str | None  # the end of its credential, with that of its allocation
    clock_ahead_s: float | None  # of its clock, before the head's; null: it has not come since the head started


class EnrolmentEntry(msgspec.Struct):
    """A secret by which many hosts join; the secret itself was shown once."""

    id: str
    made_at: str
    until: str
    hosts: list[str]  # that joined by it


class HostList(msgspec.Struct):
    """``GET /v1/hosts``."""

    door: HostDoor | None  # None: hosts cannot join, because [cluster] listen is empty
    hosts: list[HostEntry]
    enrolments: list[EnrolmentEntry]  # that are still good
    engine: EngineState | None = None  # that starts hosts; None: each is started by its own machine


class Finding(msgspec.Struct):
    """What one check of ``obatchctl doctor`` found; a host's own word, which has bounds."""

    level: Literal["ok", "warn", "bad"]
    about: Annotated[str, msgspec.Meta(max_length=20)]
    text: Annotated[str, msgspec.Meta(max_length=4000)]
    next_command: Annotated[str, msgspec.Meta(max_length=1000)] = ""  # empty: nothing is to be done


class HostFindings(msgspec.Struct):
    """What one host finds on its own machine; its commands reach that one by ssh."""

    host: str
    findings: list[Finding]


class HostsExamined(msgspec.Struct):
    """``GET /v1/hosts/findings``."""

    hosts: list[HostFindings]  # that are here


class NewLink(msgspec.Struct):
    """``POST /v1/hosts/codes`` and ``POST /v1/hosts/enrolments``. It is shown once."""

    link: str
    until: str
    id: str  # of an enrolment; empty: it is a code


class Forgotten(msgspec.Struct):
    """``DELETE /v1/hosts/NAME`` and ``DELETE /v1/hosts/enrolments/ID``."""

    hosts: list[str]  # whose credentials are none any more
