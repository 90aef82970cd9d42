"""What the engine asks about models and servers, and does not know itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple


class Models(NamedTuple):
    """Given by the composition root.

    Attributes:
        ensure: ``(server id, model)``: makes sure of a model in that server's store and tells its capabilities;
            raises ModelError.
        forget: what was known of a model no longer holds.
        facts: what is known of a model for the summary, by name.
        server_version: the Ollama version of a server, by id.
        digest: the digest of a model by name, as soon as a server can tell it; None where no server has it.
    """

    ensure: Callable[[str, str], Awaitable[list[str]]]
    forget: Callable[[str], None]
    facts: Callable[[str], dict[str, Any]]
    server_version: Callable[[str], str | None]
    digest: Callable[[str], Awaitable[str | None]]
