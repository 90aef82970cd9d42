"""One download of a model through one server, by the official client, which speaks its stream."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable

import httpx
import ollama

from obatchd.documents.models import PullProgress
from obatchd.errors import ModelError, ServerError
from obatchd.ollama import foreign
from obatchd.servers.server import Server

# Silence while a layer of hundreds of gigabytes is verified is no failure.
_TIMEOUT = httpx.Timeout(1800.0, connect=5.0)


class ServerLost(Exception):
    """The server went away; downloaded parts stay in the store."""


async def pull_through(server: Server, state: PullProgress) -> AsyncGenerator[int, None]:
    """Pull ``state.model``, whose progress is kept in ``state``; yields the bytes known to be missing at each step.

    Raises ModelError where the server or the registry refuses, ServerError where something else answers in the server's
    place, ServerLost where it cannot be reached any more.
    """
    client = ollama.AsyncClient(
        server.base_url,
        timeout=_TIMEOUT,
        trust_env=False,
        follow_redirects=False,
        verify=ssl.create_default_context(),
        auth=_authorisation(server.token),
    )
    layers: dict[str, tuple[int, int]] = {}
    try:
        async with client:
            async for step in await client.pull(state.model, stream=True):
                state.status = step.status or ""
                if step.digest and step.total:
                    layers[step.digest] = (step.completed or 0, step.total)
                    state.completed_bytes = sum(completed for completed, _ in layers.values())
                    state.total_bytes = sum(total for _, total in layers.values())
                yield state.total_bytes - state.completed_bytes
    except ollama.ResponseError as error:
        # What Ollama has to say of a pull comes with 200, but for a request that it does not take.
        if error.status_code >= 300 and error.status_code not in (400, 500):
            words = foreign.words(f"{server.base_url}/api/pull", error.status_code, str(error.error))
            raise ServerError(f"{words}.", code="not_ollama") from error
        raise _refusal(state.model, server, error.error) from error
    except (httpx.TransportError, ConnectionError) as error:
        raise ServerLost(f"{server.id} was lost: {str(error) or type(error).__name__}") from error


def _refusal(model: str, server: Server, words: str) -> ModelError:
    words = words.rstrip(".")
    if "file does not exist" in words or "not found" in words:
        there = f", or {by_its_keeper(server, model)}" if server.kind == "remote" else ""
        return ModelError(
            f"There is no model {model} in the registry ({server.id}: {words}). Check the name{there}.",
            code="model_not_found",
        )
    if "no space left" in words:
        return ModelError(f"No space to pull {model} on {server.id}: {words}.", code="no_space")
    advice = "check the network and the proxy (servers.environment)"
    if server.kind == "remote":
        advice = by_its_keeper(server, model)
    return ModelError(
        f"Pulling {model} through {server.id} failed: {words}. {advice[0].upper()}{advice[1:]}.", code="pull_failed"
    )


def by_its_keeper(server: Server, model: str) -> str:
    """What to do where a server that others keep lacks a model: our settings do not reach its network and its store."""
    return f"run on the host of {server.address}: ollama pull {model}"


def _authorisation(token: str) -> Callable[[httpx.Request], httpx.Request]:
    """Sends our token or nothing. The client by itself would send OLLAMA_API_KEY, the user's key for the cloud, to
    whatever server it talks to."""

    def apply(request: httpx.Request) -> httpx.Request:
        request.headers.pop("authorization", None)
        if token:
            request.headers["authorization"] = f"Bearer {token}"
        return request

    return apply
