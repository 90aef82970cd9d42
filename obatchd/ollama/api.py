"""Calls to an Ollama server that are no prompts of jobs: its supervision and burn-ins."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from typing import Any, Generic, TypeVar

import attrs
import msgspec

from obatchd.errors import ModelError, ServerError
from obatchd.ollama.connections import Broken, Connections, Unreachable
from obatchd.ollama.faults import FOREIGN, UNREADABLE, Cause, Fault
from obatchd.ollama.reading import Whole
from obatchd.prompts.reasoning import OPENS, opened_by

_T = TypeVar("_T")
# Since 0.30 whether a context may shift is chosen when a model is loaded: a call that says otherwise than the prompts,
# or nothing, waits until nothing is in flight and loads the model again (ollama server/sched.go, needsReload).
_AS_PROMPTS = {"shift": False}
_ENGINE_APART = (0, 30)
_NUMBERS = re.compile(r"v?(\d{1,9})\.(\d{1,9})")


def makes_vectors(capabilities: Collection[str], version: str) -> bool:
    """Whether a server of this version makes vectors with a model: since 0.30 not with one of text, for which it loads
    the model again before it says so (501). True where that is not known."""
    found = _NUMBERS.match(version)
    apart = found is not None and (int(found[1]), int(found[2])) >= _ENGINE_APART
    return not (apart and capabilities) or "embedding" in capabilities


def for_vectors(options: dict[str, Any]) -> dict[str, Any]:
    """Load-time options of a model that makes vectors and no text: a text of the whole context is one batch.

    Since 0.30 a text is refused as too long for the context where it is longer than a batch, which has at most 2,048
    tokens unless another number is asked for (ollama llm/llama_server.go, DefaultEmbeddingNumBatch).
    """
    return options | {"num_batch": options["num_ctx"]} if "num_ctx" in options else options


class LoadedModel(msgspec.Struct):
    """One entry of ``/api/ps``."""

    name: str = ""
    model: str = ""
    size: int = 0  # bytes
    size_vram: int = 0  # bytes
    context_length: int = 0  # tokens


class ModelDetails(msgspec.Struct):
    """What sort of model it is; lengths since 0.30."""

    quantization_level: str = ""
    parameter_size: str = ""
    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: list[str] | None = None
    context_length: int = 0  # tokens
    embedding_length: int = 0


class StoredModel(msgspec.Struct):
    """One entry of ``/api/tags``."""

    model: str = ""
    digest: str = ""
    size: int = 0  # bytes
    details: ModelDetails = msgspec.field(default_factory=ModelDetails)
    modified_at: str = ""
    capabilities: list[str] | None = None  # since 0.30


class ShownModel(msgspec.Struct):
    """The answer of ``/api/show`` about a model."""

    model_info: dict[str, Any] = {}
    capabilities: list[str] = []
    template: str = ""

    @property
    def abilities(self) -> list[str]:
        """``capabilities``, and with which tag the template begins the reasoning, where it does."""
        tag = opened_by(self.template)
        return [*self.capabilities, OPENS + tag] if tag and self.capabilities else self.capabilities


class _Logprob(msgspec.Struct):
    logprob: float = 0.0


class Generated(msgspec.Struct):
    """The fields of an answer to ``/api/generate`` that are used."""

    response: str = ""
    done: bool = False
    prompt_eval_count: int = 0
    eval_count: int = 0
    prompt_eval_duration: int = 0  # ns, as the next
    eval_duration: int = 0
    logprobs: list[_Logprob] | None = None


class _Models(msgspec.Struct, Generic[_T]):
    models: list[_T] | None = None


class _Version(msgspec.Struct):
    version: str


@attrs.define(eq=False)
class OllamaApi:
    """One server's API. Each call has a connection of its own: one kept to a server that was restarted would fail it.

    ``timeout_s`` is the limit on a whole call, connecting included.

    Raises (every call):
        ServerError: ``server_unreachable``, ``timeout``, ``forbidden``, ``not_ollama`` for an answer that Ollama would
            not give, or ``server_error`` with the server's words.
    """

    _base_url: str
    _token: str = ""

    async def version(self, timeout_s: float) -> str:
        body = await self._call("GET", "/api/version", timeout_s)
        try:
            return msgspec.json.decode(body, type=_Version).version
        except UNREADABLE:
            raise ServerError(
                f"{self._base_url} answers, but not as Ollama does: something else has the port.", code="not_ollama"
            ) from None

    async def loaded(self, timeout_s: float) -> list[LoadedModel]:
        return (await self._ask(_Models[LoadedModel], "GET", "/api/ps", timeout_s)).models or []

    async def stored(self, timeout_s: float) -> list[StoredModel]:
        return (await self._ask(_Models[StoredModel], "GET", "/api/tags", timeout_s)).models or []

    async def show(self, model: str, timeout_s: float) -> ShownModel:
        """Raises ModelError (``model_not_found``), too."""
        return await self._ask(ShownModel, "POST", "/api/show", timeout_s, {"model": model})

    async def show_all(self, model: str, timeout_s: float, *, verbose: bool) -> dict[str, msgspec.Raw]:
        """The whole answer about a model, field by field as it came. ``verbose``: with its long lists, as of tokens.

        Raises ModelError (``model_not_found``), too.
        """
        asked = {"model": model, "verbose": verbose}
        return await self._ask(dict[str, msgspec.Raw], "POST", "/api/show", timeout_s, asked)

    async def delete(self, model: str, timeout_s: float) -> None:
        await self._call("DELETE", "/api/delete", timeout_s, {"model": model})

    async def load(self, model: str, options: dict[str, Any], timeout_s: float, *, pin: bool) -> None:
        """Load a model. The request must live as long as the load takes: hanging up aborts the load.

        Raises ModelError, too: ``model_not_found``, or ``does_not_fit`` for want of memory.
        """
        body = {"model": model, "options": options, "stream": False} | ({"keep_alive": -1} if pin else {})
        await self._call_or_embed("/api/generate", body | _AS_PROMPTS, {**body, "input": []}, timeout_s)

    async def unload(self, model: str, timeout_s: float) -> None:
        await self._call("POST", "/api/generate", timeout_s, {"model": model, "keep_alive": 0, "stream": False})

    async def one_token(self, model: str, options: dict[str, Any], timeout_s: float, *, pin: bool) -> None:
        """Have one token generated: the least that shows whether a server works."""
        options = {**options, "num_predict": 1}
        body = {"model": model, "messages": [{"role": "user", "content": "1"}], "options": options, "stream": False}
        body |= _AS_PROMPTS | ({"keep_alive": -1} if pin else {})
        await self._call_or_embed("/api/chat", body, {"model": model, "input": "1", "options": options}, timeout_s)

    async def generate(
        self, model: str, prompt: str, options: dict[str, Any], timeout_s: float, *, logprobs: bool = False
    ) -> Generated:
        """The answer to a raw prompt, without template, so that a prompt begins as it is written; nothing is cut.

        Raises ServerError (``context_exceeded``), too.
        """
        body = {
            "model": model, "prompt": prompt, "raw": True, "stream": False, "truncate": False, "shift": False,
            "options": options, "keep_alive": -1,
        }  # fmt: skip
        body |= {"logprobs": True} if logprobs else {}
        answer = await self._ask(Generated, "POST", "/api/generate", timeout_s, body)
        if not answer.done:
            raise ServerError(f"{self._base_url} did not finish its answer (done is false).", code="server_error")
        return answer

    async def _call_or_embed(self, path: str, body: dict[str, Any], embed: dict[str, Any], timeout_s: float) -> None:
        """Post ``body`` to ``path``, and ``embed`` to ``/api/embed`` where the model makes vectors and no text."""
        try:
            await self._call("POST", path, timeout_s, body)
        except ModelError as error:
            if error.code != Cause.NOT_SUPPORTED.code:
                raise
            embed["options"] = for_vectors(embed["options"])
            await self._call("POST", "/api/embed", timeout_s, embed)

    async def _ask(
        self, kind: type[_T], method: str, path: str, timeout_s: float, body: dict[str, Any] | None = None
    ) -> _T:
        data = await self._call(method, path, timeout_s, body)
        try:
            return msgspec.json.decode(data, type=kind)
        except UNREADABLE as error:
            words = f"{self._base_url}{path} gave an answer that is not Ollama's: {error}"
            raise ServerError(words, code="not_ollama") from None

    async def _call(self, method: str, path: str, timeout_s: float, body: dict[str, Any] | None = None) -> bytes:
        answer = Whole(f"{self._base_url}{path}")
        connections = Connections(self._base_url, self._token, None)
        try:
            async with asyncio.timeout(timeout_s):
                await connections.request(method, path, msgspec.json.encode(body) if body else b"", answer)
        except TimeoutError as error:
            raise ServerError(f"{self._base_url} did not answer within {timeout_s:g} s.", code="timeout") from error
        except Unreachable as error:
            raise ServerError(f"{self._base_url} cannot be reached: {error}.", code="server_unreachable") from error
        except Broken as error:
            raise ServerError(f"{self._base_url} broke off its answer ({error}).", code="server_unreachable") from error
        finally:
            await connections.close()
        if (fault := answer.end()) is not None:
            raise self._refusal(answer.status, fault)
        return answer.body

    def _refusal(self, status: int, fault: Fault) -> ServerError:
        """The error with which a call fails; only errors that a caller can act on have codes of their own."""
        if fault.kind == FOREIGN:
            return ServerError(f"{fault.message}.", code=fault.code)
        words = f"{self._base_url}: {fault.message}."
        match fault.code:
            case Cause.MODEL_NOT_FOUND.code:
                return ModelError(f"{words} Pull it: obatchctl models pull.", code=fault.code)
            case Cause.DOES_NOT_FIT.code | Cause.NOT_SUPPORTED.code:
                return ModelError(words, code=fault.code)
            case Cause.CONTEXT_EXCEEDED.code:
                return ServerError(words, code=fault.code)
            case Cause.FORBIDDEN.code:
                remedy = (
                    "it does not take servers.remote_token; correct that" if self._token else "set servers.remote_token"
                )
                return ServerError(f"{self._base_url} refuses us ({status}): {remedy}.", code=fault.code)
        return ServerError(f"{self._base_url} answered {status}: {fault.message}", code="server_error")
