"""The HTTP face of the stand-in: routes, access log, streams."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from obatchd.simulator import golog, inference
from obatchd.simulator.ask import Ask, read_ask
from obatchd.simulator.config import Fault, FaultBox
from obatchd.simulator.models_api import ModelsApi, find
from obatchd.simulator.scheduler import Scheduler, ServeError
from obatchd.simulator.store import ModelStore
from obatchd.simulator.wire import decode

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_BODY_LIMIT_BYTES = 1 << 30
_ROUTE_ERRORS = {404: "404 page not found", 405: "405 method not allowed"}
_JSON = "application/json; charset=utf-8"
_encode = msgspec.json.encode


class StreamOutput:
    """NDJSON lines, one per piece; the HTTP status is sent with the first."""

    def __init__(self, request: web.Request, ask: Ask) -> None:
        self.response: web.StreamResponse | None = None
        self._request = request
        self._ask = ask

    async def text(self, piece: str, thinking: bool) -> None:
        await self._line({**_piece(self._ask, piece, thinking), "done": False})

    async def call(self, function: dict[str, Any]) -> None:
        piece = _piece(self._ask, "", False)
        await self._line(
            {**piece, "message": {**piece["message"], "tool_calls": [{"function": function}]}, "done": False}
        )

    async def finish(self, fields: dict[str, Any], text: str = "", thinking: bool = False) -> None:
        end = {**_piece(self._ask, "", False), **fields}
        if text:
            await self._line({**_piece(self._ask, text, thinking), "done": False}, end)
        else:
            await self._line(end)

    async def fail(self, message: str) -> None:
        await self._line({"error": message})

    async def _line(self, *lines: dict[str, Any]) -> None:
        if self.response is None:
            self.response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await self.response.prepare(self._request)
        await self.response.write(b"".join(_encode(fields) + b"\n" for fields in lines))


class WholeOutput:
    """One JSON object at the end."""

    def __init__(self, ask: Ask) -> None:
        self.fields: dict[str, Any] = {}
        self._ask = ask
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[dict[str, Any]] = []

    async def text(self, piece: str, thinking: bool) -> None:
        (self._thinking if thinking else self._text).append(piece)

    async def call(self, function: dict[str, Any]) -> None:
        self._calls.append({"function": function})

    async def finish(self, fields: dict[str, Any], text: str = "", thinking: bool = False) -> None:
        await self.text(text, thinking)
        self.fields = {**_piece(self._ask, "".join(self._text), False), **fields}
        if self._thinking:
            holder = self.fields["message"] if self._ask.chat else self.fields
            holder["thinking"] = "".join(self._thinking)
        if self._calls:
            self.fields["message"]["tool_calls"] = self._calls


class Server:
    """Routes of one stand-in server."""

    def __init__(self, scheduler: Scheduler, store: ModelStore) -> None:
        self._scheduler = scheduler
        self._store = store

    def application(self) -> web.Application:
        app = web.Application(middlewares=[_access_log], client_max_size=_BODY_LIMIT_BYTES)
        models = ModelsApi(self._scheduler, self._store)
        app.router.add_route("GET", "/", self.root)
        app.router.add_route("HEAD", "/", self.root)
        app.router.add_get("/api/version", self.version)
        app.router.add_get("/api/tags", models.tags)
        app.router.add_get("/api/ps", models.ps, allow_head=False)
        app.router.add_post("/api/show", models.show)
        app.router.add_post("/api/pull", models.pull)
        app.router.add_post("/api/create", models.create)
        app.router.add_delete("/api/delete", models.delete)
        app.router.add_post("/api/generate", self.generate)
        app.router.add_post("/api/chat", self.chat)
        app.router.add_post("/api/embed", models.embed)
        app.router.add_get("/simulator/state", self.state)
        app.router.add_get("/simulator/requests", self.requests)
        app.router.add_post("/simulator/faults", self.faults)
        return app

    async def root(self, _request: web.Request) -> web.Response:
        return web.Response(text="Ollama is running")

    async def version(self, _request: web.Request) -> web.Response:
        return json_response({"version": self._scheduler.line.version})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        return await self._infer(request, chat=False)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._infer(request, chat=True)

    async def _infer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        asked = decode(await request.read(), "ChatRequest" if chat else "GenerateRequest")
        missing = ServeError(400, "model is required") if chat else None
        spec = find(self._store, asked.get("model", ""), when_empty=missing)
        if not 0 <= asked.get("top_logprobs", 0) <= 20:
            raise ServeError(400, "top_logprobs must be between 0 and 20")
        ask = read_ask(asked, spec, self._scheduler.limits.context_length, chat=chat)
        if ask.load_only:
            return json_response(await inference.load(self._scheduler, ask))
        return await (self._stream(request, ask) if ask.stream else self._whole(request, ask))

    async def _stream(self, request: web.Request, ask: Ask) -> web.StreamResponse:
        output = StreamOutput(request, ask)
        try:
            await inference.answer(self._scheduler, ask, output)
        except inference.CutStream:
            if output.response is None:
                return _end_connection(request)
        except ServeError as error:
            if output.response is None:
                raise
            await output.fail(error.message)
        assert output.response is not None  # answer() has sent a line or raised
        await output.response.write_eof()
        return output.response

    async def _whole(self, request: web.Request, ask: Ask) -> web.StreamResponse:
        output = WholeOutput(ask)
        try:
            await inference.answer(self._scheduler, ask, output)
        except inference.CutStream:
            return _end_connection(request)
        return json_response(output.fields)

    async def state(self, _request: web.Request) -> web.Response:
        """The past and present of the server, for tests."""
        counts = self._scheduler.statistics
        fields = {name: value for name, value in vars(counts).items() if name != "recent"}
        return json_response(
            {
                "simulated": True,
                "version": self._scheduler.line.version,
                "pid": os.getpid(),
                "slots": self._scheduler.limits.slots,
                "loaded": [loaded.spec.name for loaded in self._scheduler.loaded.values()],
                "runners": [loaded.runner.pid for loaded in self._scheduler.loaded.values()],
                "fired": self._scheduler.faults.fired,
                **fields,
            }
        )

    async def requests(self, _request: web.Request) -> web.Response:
        """The latest requests that reached a slot, oldest first."""
        return json_response({"requests": list(self._scheduler.statistics.recent)})

    async def faults(self, request: web.Request) -> web.Response:
        """Replace all faults by the list in the body, or in its ``faults``."""
        try:
            asked = msgspec.json.decode(await request.read())
            faults = msgspec.convert(asked["faults"] if isinstance(asked, dict) else asked, list[Fault])
        except (ValueError, KeyError) as error:
            raise ServeError(400, f"not a list of faults: {error}") from error
        self._scheduler.faults = FaultBox(faults, self._scheduler.config.seed)
        return json_response({"faults": faults})


def json_response(fields: Any, status: int = 200) -> web.Response:
    return web.Response(body=_encode(fields), status=status, headers={"Content-Type": _JSON})


def _piece(ask: Ask, text: str, thinking: bool) -> dict[str, Any]:
    head = {"model": ask.model, "created_at": golog.now_text()}
    content = {"thinking": text} if thinking else {}
    said = "" if thinking else text
    if ask.chat:
        return {**head, "message": {"role": "assistant", "content": said, **content}}
    return {**head, "response": said, **content}


def _end_connection(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


@web.middleware
async def _access_log(request: web.Request, handler: Handler) -> web.StreamResponse:
    start_s, status = time.monotonic(), 499
    try:
        response = await handler(request)
        status = response.status
        return response
    except ServeError as error:
        status = error.status
        return json_response({"error": error.message}, status)
    except web.HTTPException as error:
        status = error.status
        if status in _ROUTE_ERRORS:
            error.text = _ROUTE_ERRORS[status]
        raise
    finally:
        golog.access(status, time.monotonic() - start_s, request.remote or "", request.method, request.path)
