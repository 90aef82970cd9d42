"""One request to an Ollama server, answered as a whole: a burn-in needs counts, not text as it comes."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import aiohttp
import msgspec

from obatchd.burnin.verdict.canary import Answer
from obatchd.errors import ServerError

CONTEXT_EXCEEDED = "context_exceeded"


class _Logprob(msgspec.Struct):
    logprob: float = 0.0


class Answered(msgspec.Struct):
    """The fields of an answer that are used; durations are nanoseconds, as Ollama has them."""

    response: str = ""
    done: bool = False
    prompt_eval_count: int = 0
    eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_duration: int = 0
    logprobs: list[_Logprob] | None = None

    def fingerprint(self) -> Answer:
        """What an output check compares."""
        digest = hashlib.sha256(self.response.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return Answer(digest, tuple(entry.logprob for entry in self.logprobs or ()))


_decoder = msgspec.json.Decoder(Answered)


class Endpoint(Protocol):
    """The part of a server that is needed to ask it."""

    base_url: str
    token: str


async def ask(
    session: aiohttp.ClientSession,
    server: Endpoint,
    model: str,
    prompt: str,
    options: dict[str, Any],
    timeout_s: float,
    *,
    logprobs: bool = False,
) -> Answered:
    """The answer to a raw prompt, without template, so that a prompt begins as it is written.

    Raises:
        ServerError: ``context_exceeded``, ``timeout``, ``server_unreachable`` or ``server_error``.
    """
    body: dict[str, Any] = {
        "model": model, "prompt": prompt, "raw": True, "stream": False, "truncate": False, "shift": False,
        "options": options, "keep_alive": -1,
    }  # fmt: skip
    if logprobs:
        body["logprobs"] = True
    headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
    timeout = aiohttp.ClientTimeout(total=timeout_s, ceil_threshold=timeout_s + 1)
    try:
        async with session.post(
            server.base_url + "/api/generate", data=msgspec.json.encode(body), headers=headers, timeout=timeout
        ) as response:
            data = await response.read()
    except TimeoutError as error:
        raise ServerError(f"no answer within {timeout_s:.0f} s", code="timeout") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ServerError(f"the connection failed: {error}", code="server_unreachable") from error
    if response.status != 200:
        text = data[:300].decode(errors="replace")
        exceeded = response.status == 400 and "context length" in text
        raise ServerError(f"{response.status}: {text}", code=CONTEXT_EXCEEDED if exceeded else "server_error")
    try:
        answered = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ServerError(f"not an answer: {error}", code="server_error") from error
    if not answered.done:
        raise ServerError("the answer is not complete", code="server_error")
    return answered
