"""The Python client, the client of the control API that it and ``obatchctl`` use, and parts that both ends share.

``from obatchd.client import Client`` is all that a script or a notebook needs (docs/python.md). Nothing of the daemon
is imported, and nothing at all before a name is used: ``obatchctl`` passes here at every start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obatchd.client.answers import Answer, AnswerError, Results
    from obatchd.client.asynchronous import AsyncClient, AsyncJob, AsyncResults
    from obatchd.client.jobs import Client, Job

__all__ = ["Answer", "AnswerError", "AsyncClient", "AsyncJob", "AsyncResults", "Client", "Job", "Results"]

_MODULES = {
    **dict.fromkeys(("Answer", "AnswerError", "Results"), "answers"),
    **dict.fromkeys(("AsyncClient", "AsyncJob", "AsyncResults"), "asynchronous"),
    **dict.fromkeys(("Client", "Job"), "jobs"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"obatchd.client has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
