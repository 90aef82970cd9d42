"""One attempt of a request at the worker's server: from its bytes to the finished record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from obatchd.context.model import context as prepared_context
from obatchd.dispatch import protocol, records
from obatchd.dispatch.protocol import JobContext, OfferItem, ResultItem
from obatchd.dispatch.records import Found
from obatchd.dispatch.worker.answering import as_it_ended, structured_answer
from obatchd.dispatch.worker.body import has_images, left_out, request_body
from obatchd.dispatch.worker.computed import Computed
from obatchd.dispatch.worker.embedding import Vectors, embed, may_share
from obatchd.dispatch.worker.several import SlotLender, seeds_of, several
from obatchd.dispatch.worker.streaming import Stream
from obatchd.jobs.formats.request import Request, parse_request, request_id
from obatchd.jobs.model import id_at, written_line
from obatchd.ollama import faults
from obatchd.ollama.client import Answer, OllamaClient
from obatchd.ollama.faults import Cause, Fault
from obatchd.prompts.reasoning import OPENS
from obatchd.prompts.structured import FormatError, answer_format

_UNCONFIGURED = protocol.Configure("", "", "", "", 0, 0.0, 0.0, 0.0)  # no slot yet


class Held(msgspec.Struct, eq=False):
    """A request the worker holds."""

    item: OfferItem
    offer: protocol.Offer
    stream: Stream | None = None  # of an interactive one
    task: asyncio.Task[None] | None = None  # of its slot while it has one
    active: int = 0  # requests in a slot when it got one, itself included
    began_s: float = 0.0  # monotonic; when it got its slot
    beside_s: float = 0.0  # of its answers that had slots beside its own
    token_s: float = 0.0  # monotonic; of the latest token, 0 before the first
    fault: Fault | None = None  # why its attempt was ended from outside


Together = Sequence[tuple[Held, Request]]


class TokenListener(SlotLender, Protocol):
    """Hears that attempts get on, and lends slots; :class:`obatchd.dispatch.worker.worker.Worker`."""

    def token(self, held: Held) -> None:
        """More of an answer has arrived."""


class Attempts:
    """Makes results, with the worker's knowledge of its server and its jobs."""

    def __init__(self, listener: TokenListener) -> None:
        self.server = _UNCONFIGURED  # as the main process configured it
        self.client: OllamaClient | None = None  # asks it
        self.jobs: dict[int, JobContext] = {}  # the common part of a job's requests, by job key
        self.active = 0  # slots in use
        self._computed = Computed()
        self._listener = listener

    async def run(self, held: Held, joining: Callable[[Held, Request], Together]) -> list[tuple[Held, ResultItem]]:
        """The results of one attempt: of ``held``, and of requests that ``joining`` lets share its call for vectors."""
        started_s, clock = time.time(), time.perf_counter()
        try:
            request = parse_request(held.item.raw)
        except (ValueError, RecursionError) as error:  # of msgspec and of decoding, too
            fault = Fault(faults.REQUEST, "bad_json", f"line {written_line(held.item.line)[0]}: {error}")
            return [(held, self.without_answer(held, fault))]
        if request.embed is not None:
            return await self._embed([(held, request), *joining(held, request)])
        if held.stream is not None and request.n > 1:
            held.stream.whole = True
        answer, extra = found = await self._fulfil(held, request)
        if held.stream is not None and answer.fault is None and request.n == 1:
            held.stream.end(answer)
        if reused := self._computed.reused(held.item.job, held.item.family, answer):
            found = answer, extra | {"prompt_tokens_reused_estimate": reused}
        return [(held, self._result(held, request, found, started_s, time.perf_counter() - clock))]

    def without_answer(self, held: Held, fault: Fault) -> ResultItem:
        """The result of an attempt that a fault outside the server ended."""
        request = Request(id=request_id(held.item.raw))
        return self._result(held, request, (Answer(fault=fault), {}), time.time(), 0.0)

    def _result(self, held: Held, request: Request, found: Found, started_s: float, duration_s: float) -> ResultItem:
        item, (answer, extra) = held.item, found
        record = records.attempt(self.server, held.offer.model, item, request, found, started_s, duration_s)
        fault = answer.fault or Fault("", "", "")
        tokens = (answer.prompt_tokens, answer.response_tokens)
        # A constrained answer of a model that thinks takes a slot twice and reports the second time only; images are
        # decoded before the clock of the prompt starts. Neither is a wait (ollama server/routes.go, llama/runner).
        plain = "data" not in extra and not has_images(request)
        return ResultItem(
            item.job, item.line, item.attempt, answer.fault is None, record, duration_s, *tokens, *fault,
            eval_s=answer.eval_s, wait_s=answer.wait_s if plain else 0.0, active=min(held.active, self.active),
            vectors=may_share(request), beside_s=held.beside_s,
        )  # fmt: skip

    async def _fulfil(self, held: Held, request: Request) -> Found:
        """The answer to a request, and more fields for its record."""
        offer, context = held.offer, self.jobs[held.item.job]
        sources: dict[str, Any] = {}
        if held.item.prepared:
            prepared = prepared_context.decode(held.item.prepared)
            request, sources = prepared.applied_to(request), prepared.recorded()
        elif request.urls or request.files:
            words = "it names sources, and sources are off here: an administrator can enable [context]"
            return Answer(fault=Cause.CONTEXT_OFF.fault(words)), {}
        if offer.capabilities and "vision" not in offer.capabilities and has_images(request):
            words = f"the model {offer.model} cannot see images; use one with the capability vision"
            return Answer(fault=Cause.NOT_SUPPORTED.fault(words)), {}
        number = written_line(held.item.line)[1]
        if not number and request.n == 1:
            answer, extra = await self._answer(held, request)
        else:
            label = id_at(held.item.line, request.id)
            seeds = seeds_of(request, context, label, number)
            try:
                answer, extra = await several(partial(self._one_of_several, held), request, seeds, self._listener)
            except asyncio.CancelledError:
                answer, extra = Answer(fault=_given_up(held)), {}
            if held.beside_s:
                extra = extra | {"beside_s": round(held.beside_s, 6)}
        return answer, extra | sources

    async def _one_of_several(self, held: Held, request: Request) -> Found:
        began_s = held.began_s = time.monotonic()  # each answer may take as long as an attempt
        try:
            return await self._answer(held, request)
        finally:
            if asyncio.current_task() is not held.task:
                held.beside_s += time.monotonic() - began_s

    async def _answer(self, held: Held, request: Request) -> Found:
        """One answer to a request whose sources are in its prompt."""
        offer, context = held.offer, self.jobs[held.item.job]
        body = request_body(request, context, offer.model, offer.load_options, offer.capabilities)
        extra: dict[str, Any] = {}
        if "format" in body and request.tools:  # nobody knows whether text or a call will come, so nothing is checked
            try:
                body["format"], extra["notes"] = answer_format(body["format"]).for_server
            except FormatError as error:
                return Answer(fault=Cause.INVALID_FORMAT.fault(str(error))), {}
            answer = await self._ask(held, body)
        elif "format" in body:
            if held.stream is not None:
                held.stream.whole = True  # it is checked first
            in_source = request.in_source if request.in_source is not None else context.in_source
            answer, extra = await structured_answer(partial(self._ask, held), body, in_source)
        else:
            answer = await self._ask(held, body)
        if held.stream is not None:
            answer = as_it_ended(answer)
        if answer.tool_calls:
            extra["tool_calls"] = answer.tool_calls
        if notes := [*extra.pop("notes", ()), *left_out(request, offer.capabilities)]:
            extra["notes"] = notes
        return answer, extra

    async def _ask(self, held: Held, body: dict[str, Any]) -> Answer:
        assert self.client is not None
        held.token_s = 0.0
        able = held.offer.capabilities
        opened = able[-1].removeprefix(OPENS) if able and able[-1].startswith(OPENS) else ""
        if body.get("think") is False and "thinking" in able:
            opened = ""  # its template takes that into account
        if held.stream is not None:
            held.stream.opened = opened
        try:
            return await self.client.chat(body, partial(self._listener.token, held), opened, held.stream)
        except asyncio.CancelledError:
            return Answer(fault=_given_up(held))

    async def _embed(self, together: Together) -> list[tuple[Held, ResultItem]]:
        assert self.client is not None
        started_s, clock = time.time(), time.perf_counter()
        held = together[0][0]
        requests = [request for _, request in together]
        try:
            context = self.jobs[held.item.job]
            found = await embed(self.client.embed, requests, context, held.offer, self.server.version)
        except asyncio.CancelledError:
            found = [Vectors(Answer(fault=_given_up(held)), {})] * len(together)
        self._listener.token(held)
        duration_s = (time.perf_counter() - clock) / len(together)
        return [
            (one, self._result(one, request, _noted(request, vectors, held.offer), started_s, duration_s))
            for (one, request), vectors in zip(together, found, strict=True)
        ]


def _noted(request: Request, vectors: Vectors, offer: protocol.Offer) -> Found:
    """Vectors with the notes for their author: texts in a field called ``input`` may be meant as prompts."""
    notes = list(request.notes)
    if not request.url and offer.capabilities and "embedding" not in offer.capabilities:
        advice = "for answers, call the field prompt or submit with --text-column input"
        notes.append(f"{offer.model} is a model for answers, not for vectors: {advice}")
    return vectors.answer, vectors.extra | ({"notes": notes} if notes else {})


def _given_up(held: Held) -> Fault:
    """Why an attempt was ended; called while its cancellation is handled, which goes on where its job is over."""
    if held.fault is None or held.task is None:
        raise asyncio.CancelledError
    held.task.uncancel()  # only the attempt ends here
    return held.fault
