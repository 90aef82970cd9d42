"""The endpoints about models: tags, ps, show, pull, create, delete, embed."""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import math
import random
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from obatchd.simulator import golog
from obatchd.simulator.config import ModelSpec
from obatchd.simulator.scheduler import FOREVER_S, Loaded, Scheduler, ServeError
from obatchd.simulator.store import ModelStore, details, full_name, valid_name
from obatchd.simulator.wire import check_options, decode, keep_alive_s

_EMBEDDING_SIZE = 64
_PULL_STEPS = 20
_encode = msgspec.json.encode


def find(store: ModelStore, name: str, *, when_empty: ServeError | None = None) -> ModelSpec:
    """The model ``name``.

    Raises:
        ServeError: in the words of Ollama; ``when_empty`` where no name is given.
    """
    if not name and when_empty is not None:
        raise when_empty
    if name and not valid_name(name):
        raise ServeError(400, "invalid model name")
    if (spec := store.find(name)) is None:
        raise ServeError(404, f"model '{name}' not found")
    return spec


class ModelsApi:
    """Handlers of one server."""

    def __init__(self, scheduler: Scheduler, store: ModelStore) -> None:
        self._scheduler = scheduler
        self._store = store
        self._line = scheduler.line

    async def tags(self, _request: web.Request) -> web.Response:
        models = [
            {
                "name": spec.name,
                "model": spec.name,
                "modified_at": spec.modified_at,
                "size": spec.size_bytes,
                "digest": spec.digest,
                **self._detailed(spec),
            }
            for spec in self._store.all().values()
        ]
        return _json({"models": sorted(models, key=lambda model: str(model["modified_at"]), reverse=True)})

    def _detailed(self, spec: ModelSpec) -> dict[str, Any]:
        if not self._line.separate:
            return {"details": details(spec)}
        lengths = {"context_length": spec.context_length, "embedding_length": _EMBEDDING_SIZE}
        return {"details": details(spec) | lengths, "capabilities": spec.capabilities}

    async def ps(self, _request: web.Request) -> web.Response:
        return _json({"models": [_loaded(loaded) for loaded in self._scheduler.loaded.values()]})

    async def show(self, request: web.Request) -> web.Response:
        asked = decode(await request.read(), "ShowRequest")
        name = asked.get("model") or asked.get("name", "")
        name = full_name(name) if name and self._line.separate else name  # as an error calls it
        spec = find(self._store, name, when_empty=ServeError(400, "model is required"))
        return _json(_shown(spec))

    async def pull(self, request: web.Request) -> web.StreamResponse:
        asked = decode(await request.read(), "PullRequest")
        name = asked.get("model") or asked.get("name", "")
        if not valid_name(name):
            raise ServeError(400, "invalid model name")
        config = self._scheduler.config
        lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        if fnmatch.fnmatch(name, config.missing):
            return await self._progress(request, asked, lines, error="pull model manifest: file does not exist")
        spec = ModelSpec(name=full_name(name), modified_at=golog.now_text(), size_bytes=config.pull_bytes)
        layer = hashlib.sha256(f"layer/{spec.name}".encode()).hexdigest()
        for step in range(_PULL_STEPS + 1):
            progress = {"digest": f"sha256:{layer}", "total": config.pull_bytes}
            completed = config.pull_bytes * step // _PULL_STEPS
            lines.append({"status": f"pulling {layer[:12]}", **progress, **({"completed": completed} if step else {})})
        lines += [{"status": text} for text in ("verifying sha256 digest", "writing manifest")]
        return await self._progress(request, asked, lines, pause_s=config.pull_s / len(lines), made=spec)

    async def create(self, request: web.Request) -> web.StreamResponse:
        asked = decode(await request.read(), "CreateRequest")
        name = asked.get("model") or asked.get("name", "")
        if not valid_name(name):
            raise ServeError(400, "invalid model name")
        if not asked.get("from"):
            raise ServeError(400, "neither 'from' or 'files' was specified")
        base = self._store.find(asked["from"])
        if base is None:
            lines = [{"status": "pulling manifest"}]
            return await self._progress(request, asked, lines, error="pull model manifest: file does not exist")
        changes = {key: asked[key] for key in ("system", "template") if key in asked}
        spec = msgspec.structs.replace(
            base,
            name=full_name(name),
            digest=hashlib.sha256(_encode([base.digest, asked])).hexdigest(),
            parent_model=base.name,
            modified_at=golog.now_text(),
            parameters={**base.parameters, **asked.get("parameters", {})},
            **changes,
        )
        lines = [{"status": f"using existing layer sha256:{base.digest}"}, {"status": "writing manifest"}]
        return await self._progress(request, asked, lines, made=spec)

    async def _progress(
        self,
        request: web.Request,
        asked: dict[str, Any],
        lines: Iterable[dict[str, Any]],
        *,
        error: str = "",
        pause_s: float = 0.0,
        made: ModelSpec | None = None,
    ) -> web.StreamResponse:
        """Answer with progress lines; the last is ``error``, or ``success`` after ``made`` is stored."""
        stream = asked.get("stream", True)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        for line in lines:
            if stream:
                if not response.prepared:
                    await response.prepare(request)
                await response.write(_encode(line) + b"\n")
            await asyncio.sleep(pause_s)
        if error:
            golog.slog("INFO", "images.go:897", f"request failed: {error}")
            last = {"error": error}
        else:
            if made is not None:
                self._store.put(made)
            last = {"status": "success"}
        if not stream:
            return _json(last, status=500 if error else 200)
        await response.write(_encode(last) + b"\n")
        await response.write_eof()
        return response

    async def delete(self, request: web.Request) -> web.Response:
        asked = decode(await request.read(), "DeleteRequest")
        name = asked.get("model") or asked.get("name", "")
        spec = find(self._store, name, when_empty=ServeError(400, "model is required"))
        self._store.remove(spec.name)
        return web.Response()

    async def embed(self, request: web.Request) -> web.Response:
        asked = decode(await request.read(), "EmbedRequest")
        start_s, name, given = time.monotonic(), asked.get("model", ""), asked.get("input", [])
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ServeError(400, "invalid input type")
        spec = self._store.find(name)
        if spec is None:
            quoted = f'model "{name}" not found, try pulling it first' if name else f"model '{name}' not found"
            raise ServeError(404, quoted)
        options = check_options({**spec.parameters, **asked.get("options", {})})
        options["num_ctx"] = min(options.get("num_ctx", self._scheduler.limits.context_length), spec.context_length)
        loads = self._line.load_options(options, shift=True)
        loaded = await self._scheduler.acquire(spec, loads, keep_alive_s(asked.get("keep_alive")))
        self._scheduler.release(loaded)
        if texts and (refusal := self._line.no_vectors(spec.capabilities)):
            raise ServeError(*refusal)
        longest = self._line.longest_text(options)
        if not asked.get("truncate", True) and any(len(text.split()) > longest for text in texts):
            raise ServeError(400, "the input length exceeds the context length")
        if texts:
            self._scheduler.statistics.requests += 1
            self._scheduler.statistics.recent.append(
                {"at_s": time.time(), "model": spec.name, "prompt": texts[0][:200], "texts": len(texts)}
            )
        fields: dict[str, Any] = {
            "model": name,
            "embeddings": [_embedding(text)[: asked.get("dimensions")] for text in texts],
        }
        if texts:
            nanos = max(1, round((time.monotonic() - start_s) * 1e9))
            count = sum(len(text.split()) for text in texts)
            fields.update(total_duration=nanos, load_duration=nanos, prompt_eval_count=count)
        return _json(fields)


def _loaded(loaded: Loaded) -> dict[str, Any]:
    seconds = time.time() + min(loaded.expires_in_s(), FOREVER_S)
    return {
        "name": loaded.spec.name,
        "model": loaded.spec.name,
        "size": loaded.size_bytes,
        "digest": loaded.spec.digest,
        "details": details(loaded.spec),
        "expires_at": datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z"),
        "size_vram": loaded.vram_bytes,
        "context_length": loaded.num_ctx,
    }


def _shown(spec: ModelSpec) -> dict[str, Any]:
    info = {
        "general.architecture": spec.family,
        "general.file_type": 1,
        "general.parameter_count": 484416,
        "general.quantization_version": 2,
        f"{spec.family}.block_count": 2,
        f"{spec.family}.context_length": spec.context_length,
        f"{spec.family}.embedding_length": _EMBEDDING_SIZE,
    }
    parameters = "\n".join(f"{name:<30} {_encode(value).decode()}" for name, value in spec.parameters.items())
    optional = {"parameters": parameters, "system": spec.system}
    return {
        "modelfile": f"# Simulated model\nFROM {spec.name}\nTEMPLATE {spec.template}\n",
        **{key: text for key, text in optional.items() if text},
        "template": spec.template,
        "details": details(spec, parent=spec.parent_model),
        "model_info": info,
        "tensors": [],
        "capabilities": spec.capabilities,
        "modified_at": spec.modified_at,
    }


def _embedding(text: str) -> list[float]:
    source = random.Random(text)
    values = [source.gauss(0.0, 1.0) for _ in range(_EMBEDDING_SIZE)]
    norm = math.sqrt(sum(value * value for value in values))
    return [value / norm for value in values]


def _json(fields: dict[str, Any], status: int = 200) -> web.Response:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return web.Response(body=_encode(fields), status=status, headers=headers)
