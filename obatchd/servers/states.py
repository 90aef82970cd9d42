"""The states of a server and the only changes between them.

A loaded model is no state: dispatch needs READY and the right profile.
"""

from __future__ import annotations

from enum import StrEnum


class ServerState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"
    QUARANTINED = "quarantined"


DESCRIPTIONS = {
    ServerState.STOPPED: "not running",
    ServerState.STARTING: "started, does not answer yet",
    ServerState.READY: "answers, and a GPU server sees its GPU",
    ServerState.DRAINING: "gets no new requests; an administrator or a fault asked for it",
    ServerState.STOPPING: "is being ended",
    ServerState.BACKOFF: "ended by itself or cannot be reached; is tried again after a pause",
    ServerState.FAILED: "failed too often; is tried again after a long pause",
    ServerState.QUARANTINED: "its GPU is out of use because of its health",
}

TRANSITIONS: dict[ServerState, frozenset[ServerState]] = {
    ServerState.STOPPED: frozenset(
        {ServerState.STARTING, ServerState.BACKOFF, ServerState.FAILED, ServerState.QUARANTINED}
    ),
    ServerState.STARTING: frozenset({ServerState.READY, ServerState.BACKOFF, ServerState.FAILED, ServerState.STOPPING}),
    ServerState.READY: frozenset({ServerState.DRAINING, ServerState.STOPPING, ServerState.BACKOFF, ServerState.FAILED}),
    ServerState.DRAINING: frozenset({ServerState.READY, ServerState.STOPPING, ServerState.BACKOFF, ServerState.FAILED}),
    ServerState.STOPPING: frozenset({ServerState.STOPPED}),
    ServerState.BACKOFF: frozenset({ServerState.STARTING, ServerState.STOPPED}),
    ServerState.FAILED: frozenset({ServerState.STARTING, ServerState.STOPPED}),
    ServerState.QUARANTINED: frozenset({ServerState.STOPPED}),
}
assert set(TRANSITIONS) == set(DESCRIPTIONS) == set(ServerState)


def check(old: ServerState, new: ServerState) -> None:
    """Assert that ``old`` may become ``new``."""
    assert new in TRANSITIONS[old], f"a server cannot go from {old} to {new}"
