"""The engine that starts obatchd on hosts, and the machines that it has."""

from __future__ import annotations

import msgspec


class EngineNode(msgspec.Struct):
    """A machine of the engine that has GPUs."""

    name: str  # of the host that runs there
    address: str
    gpus: int
    state: str  # running, starting, leaving, none
    reason: str  # of its state, or what is the matter; empty: nothing


class EngineState(msgspec.Struct):
    """``engine`` of ``GET /v1/hosts``."""

    kind: str  # ray
    address: str
    state: str  # here, starting, gone
    reason: str  # of its state, with what to do
    version: str  # empty: it is not known yet
    authenticated: bool | None  # whether the engine asks those who come for a token; None: it is not known yet
    nodes: list[EngineNode]
