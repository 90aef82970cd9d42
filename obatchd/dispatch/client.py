"""One request to one Ollama server, over aiohttp.

The official client costs ten times as much per call and cannot send ``truncate`` and ``shift``, without which a
prompt that is too long is cut in silence (docs/architecture.md, "Libraries").
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import aiohttp
import msgspec

from obatchd.dispatch import faults
from obatchd.dispatch.faults import Fault


class _Message(msgspec.Struct):
    content: str = ""
    thinking: str = ""


class _Chunk(msgspec.Struct):
    message: _Message | None = None
    done: bool = False
    done_reason: str = ""
    error: str = ""
    prompt_eval_count: int = 0
    eval_count: int = 0
    total_duration: int = 0  # ns, as the three that follow
    load_duration: int = 0
    prompt_eval_duration: int = 0
    eval_duration: int = 0


class _Error(msgspec.Struct):
    error: str = ""


class Answer(NamedTuple):
    """A whole answer, or the fault that prevented one."""

    text: str
    think: str
    done_reason: str
    prompt_tokens: int
    response_tokens: int
    eval_s: float
    fault: Fault | None
    wait_s: float = 0.0  # inside the server, for a slot


_chunk = msgspec.json.Decoder(_Chunk)
_error = msgspec.json.Decoder(_Error)
_encode = msgspec.json.Encoder().encode


def _failed(fault: Fault, text: str = "", think: str = "") -> Answer:
    return Answer(text, think, "", 0, 0, 0.0, fault)


class OllamaClient:
    """Keeps connections to one server. Proxies of the environment are never used.

    Args:
        base_url: e.g. ``http://127.0.0.1:11500``.
        token: bearer token, or empty.
        connect_timeout_s, request_timeout_s: limits on connecting and on the whole attempt. Silence has no limit here:
            a request may wait behind others or have a long prompt, so it counts per server (dispatch.watchdog).
    """

    def __init__(self, base_url: str, token: str, *, connect_timeout_s: float, request_timeout_s: float) -> None:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._url = base_url.rstrip("/") + "/api/chat"
        self._connect_timeout_s = connect_timeout_s
        self._request_timeout_s = request_timeout_s
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=60),
            headers=headers,
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
        )

    def _timeout(self, total_s: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=total_s, sock_connect=self._connect_timeout_s, ceil_threshold=60)

    async def close(self) -> None:
        await self._session.close()

    async def chat(self, body: dict[str, Any], on_token: Callable[[], None], limit_s: float | None = None) -> Answer:
        """Send ``body`` to ``/api/chat`` and read the stream to its end; never raises for what a server may do.

        ``on_token`` is called for each piece of text that arrives; ``limit_s`` is shorter than the limit of attempts.
        """
        limit_s = limit_s or self._request_timeout_s
        try:
            async with self._session.post(self._url, data=_encode(body), timeout=self._timeout(limit_s)) as response:
                if response.status != 200:
                    return _failed(faults.from_response(response.status, _error_text(await response.read())))
                return await self._read(response, on_token)
        except aiohttp.ClientConnectorError as error:
            return _failed(faults.connection_refused(str(error)))
        except aiohttp.ConnectionTimeoutError as error:
            return _failed(faults.connection_refused(str(error)))
        except TimeoutError:
            return _failed(faults.out_of_time(limit_s))
        except (aiohttp.ClientError, ConnectionError, OSError, asyncio.IncompleteReadError) as error:
            return _failed(faults.connection_lost(str(error) or type(error).__name__))

    async def _read(self, response: aiohttp.ClientResponse, on_token: Callable[[], None]) -> Answer:
        texts: list[str] = []
        thoughts: list[str] = []
        last: _Chunk | None = None
        rest = b""
        async for data in response.content.iter_any():
            *lines, rest = (rest + data if rest else data).split(b"\n")
            for line in lines:
                if line:
                    last = _take(line, texts, thoughts)
                    if last.error:
                        return _failed(faults.from_response(200, last.error))
            on_token()
        if rest.strip():
            last = _take(rest, texts, thoughts)
            if last.error:
                return _failed(faults.from_response(200, last.error))
        return _finish(last, "".join(texts), "".join(thoughts))


def _take(line: bytes, texts: list[str], thoughts: list[str]) -> _Chunk:
    try:
        chunk = _chunk.decode(line)
    except msgspec.DecodeError as error:
        return _Chunk(error=f"unexpected server status: the answer is not JSON ({error})")
    if chunk.message is not None:
        if chunk.message.content:
            texts.append(chunk.message.content)
        if chunk.message.thinking:
            thoughts.append(chunk.message.thinking)
    return chunk


def _finish(last: _Chunk | None, text: str, think: str) -> Answer:
    last = last or _Chunk()
    fault = faults.incomplete(last.done, last.done_reason, text)
    counts = (last.prompt_eval_count, last.eval_count, last.eval_duration / 1e9)
    # load_duration ends when the runner is handed over; the wait for a slot comes after it (ollama server/routes.go).
    wait_ns = last.total_duration - last.load_duration - last.prompt_eval_duration - last.eval_duration
    return Answer(text, think, last.done_reason, *counts, fault, max(0.0, wait_ns / 1e9))


def _error_text(body: bytes) -> str:
    try:
        return _error.decode(body).error
    except msgspec.DecodeError:
        return body[:500].decode("utf-8", "replace").strip()
