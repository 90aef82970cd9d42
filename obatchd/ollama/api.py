"""The few calls to an Ollama server that its supervision needs, over aiohttp, never through a proxy."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import aiohttp
import msgspec

from obatchd.errors import ModelError, ServerError

_T = TypeVar("_T")
_UNFIT = (
    "requires more system memory",
    "unable to load full model on gpu",
    "resource limitations",
    "failed to allocate memory",
    "cudamalloc failed",
    "out of memory",
)


class LoadedModel(msgspec.Struct):
    """One entry of ``/api/ps``."""

    name: str = ""
    model: str = ""
    size: int = 0  # bytes
    size_vram: int = 0  # bytes
    context_length: int = 0  # tokens


class ModelDetails(msgspec.Struct):
    quantization_level: str = ""
    parameter_size: str = ""


class StoredModel(msgspec.Struct):
    """One entry of ``/api/tags``."""

    model: str = ""
    digest: str = ""
    size: int = 0  # bytes
    details: ModelDetails = msgspec.field(default_factory=ModelDetails)


class ShownModel(msgspec.Struct):
    """What ``/api/show`` tells of a model."""

    model_info: dict[str, Any] = {}
    capabilities: list[str] = []


class _Stored(msgspec.Struct):
    models: list[StoredModel] | None = None


class _Version(msgspec.Struct):
    version: str


class _Loaded(msgspec.Struct):
    models: list[LoadedModel] | None = None


class _Error(msgspec.Struct):
    error: str = ""


def canonical(model: str) -> str:
    """A model name with its tag: ``llama3`` and ``llama3:latest`` are the same."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


class OllamaApi:
    """One server's API.

    Raises (every call):
        ServerError: ``server_unreachable``, or ``server_error`` with the server's words.
    """

    def __init__(self, session: aiohttp.ClientSession, base_url: str, token: str = "") -> None:
        self._session = session
        self._base_url = base_url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def version(self, timeout_s: float) -> str:
        body = await self._call("GET", "/api/version", timeout_s)
        try:
            return msgspec.json.decode(body, type=_Version).version
        except msgspec.DecodeError:
            raise ServerError(
                f"{self._base_url} answers, but not as Ollama does: something else has the port.", code="not_ollama"
            ) from None

    async def loaded(self, timeout_s: float) -> list[LoadedModel]:
        return self._decode(_Loaded, "/api/ps", await self._call("GET", "/api/ps", timeout_s)).models or []

    async def stored(self, timeout_s: float) -> list[StoredModel]:
        """The models in the server's store."""
        return self._decode(_Stored, "/api/tags", await self._call("GET", "/api/tags", timeout_s)).models or []

    async def show(self, model: str, timeout_s: float) -> ShownModel:
        """
        Raises:
            ModelError: ``model_not_found``.
        """
        return self._decode(ShownModel, "/api/show", await self._call("POST", "/api/show", timeout_s, {"model": model}))

    async def delete(self, model: str, timeout_s: float) -> None:
        """Remove a model from the server's store."""
        await self._call("DELETE", "/api/delete", timeout_s, {"model": model})

    async def load(self, model: str, options: dict[str, Any], timeout_s: float, *, pin: bool) -> None:
        """Load a model. The request must live as long as the load takes: hanging up aborts the load.

        Raises:
            ModelError: ``model_not_found``, or ``does_not_fit`` for want of memory.
        """
        body = {"model": model, "options": options, "stream": False} | ({"keep_alive": -1} if pin else {})
        try:
            await self._call("POST", "/api/generate", timeout_s, body)
        except ModelError as error:
            if error.code != "not_supported":
                raise
            await self._call("POST", "/api/embed", timeout_s, {**body, "input": []})  # it makes vectors and no text

    async def unload(self, model: str, timeout_s: float) -> None:
        await self._call("POST", "/api/generate", timeout_s, {"model": model, "keep_alive": 0, "stream": False})

    async def one_token(self, model: str, options: dict[str, Any], timeout_s: float, *, pin: bool) -> None:
        """Have one token generated: the least that shows whether a server works."""
        options = {**options, "num_predict": 1}
        body = {"model": model, "messages": [{"role": "user", "content": "1"}], "options": options, "stream": False}
        try:
            await self._call("POST", "/api/chat", timeout_s, body | ({"keep_alive": -1} if pin else {}))
        except ModelError as error:
            if error.code != "not_supported":
                raise
            await self._call("POST", "/api/embed", timeout_s, {"model": model, "input": "1", "options": options})

    def _decode(self, kind: type[_T], path: str, body: bytes) -> _T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            raise ServerError(
                f"{self._base_url}{path} answered what Ollama does not: {error}", code="not_ollama"
            ) from None

    async def _call(self, method: str, path: str, timeout_s: float, body: dict[str, Any] | None = None) -> bytes:
        timeout = aiohttp.ClientTimeout(total=timeout_s, ceil_threshold=timeout_s + 1)
        try:
            async with self._session.request(
                method, self._base_url + path, json=body, headers=self._headers, timeout=timeout
            ) as response:
                data = await response.read()
        except TimeoutError as error:
            raise ServerError(f"{self._base_url} did not answer within {timeout_s:g} s.", code="timeout") from error
        except (aiohttp.ClientError, OSError) as error:
            words = f"{self._base_url} cannot be reached: {_reason(error)}."
            raise ServerError(words, code="server_unreachable") from error
        if response.status != 200:
            raise _refusal(self._base_url, response.status, data)
        return data


def _refusal(base_url: str, status: int, data: bytes) -> ServerError:
    try:
        text = msgspec.json.decode(data, type=_Error).error
    except msgspec.DecodeError:
        text = data[:200].decode(errors="replace")
    if status == 404 and "not found" in text:
        return ModelError(f"{base_url}: {text}. Pull it: obatchctl models pull.", code="model_not_found")
    if any(words in text.lower() for words in _UNFIT):
        return ModelError(f"{base_url}: {text}.", code="does_not_fit")
    if status == 400 and "does not support" in text:
        return ModelError(f"{base_url}: {text}.", code="not_supported")
    if status in (401, 403):
        return ServerError(f"{base_url} refuses us ({status}): set servers.remote_token.", code="forbidden")
    return ServerError(f"{base_url} answered {status}: {text}", code="server_error")


def _reason(error: Exception) -> str:
    """Why a connection failed, in the words of the operating system, e.g. "Connection refused"."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)  # negative: a name is not known
    return str(error)
