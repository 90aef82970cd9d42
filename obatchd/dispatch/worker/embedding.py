"""Requests for vectors: many of them in one call, because a call costs more than the vector of a short text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from obatchd.dispatch.protocol import JobContext, Offer
from obatchd.dispatch.worker.body import LOAD_OPTIONS
from obatchd.jobs.formats.request import Request
from obatchd.ollama import faults
from obatchd.ollama.api import for_vectors, makes_vectors
from obatchd.ollama.client import Answer, Embedded
from obatchd.ollama.faults import Cause

TOGETHER = 32  # requests in one call
# The characters of one call, each text counted as at least so many: a call of long texts would take a slot for long and
# gain nothing.
_TOGETHER_SIZE = 64 * 1024
_LEAST_SIZE = 128
Ask = Callable[[dict[str, Any]], Awaitable[Embedded]]


class Vectors(NamedTuple):
    """The outcome of one request, and more fields for its record."""

    answer: Answer
    extra: dict[str, Any]


def texts_of(request: Request) -> list[str]:
    return [request.embed] if isinstance(request.embed, str) else list(request.embed or ())


def size_of(request: Request) -> int:
    """The share of ``request`` in its call, in characters."""
    return sum(max(_LEAST_SIZE, len(text)) for text in texts_of(request))


def may_share(request: Request) -> bool:
    """Whether ``request`` can share its call. Lines of a batch file cannot: each is owed its own count of tokens."""
    return request.embed is not None and not request.url


def may_join(first: Request, size: int, request: Request) -> bool:
    """Whether ``request`` can be answered in the same call as ``first``, which is of ``size`` characters so far."""
    same = request.options == first.options and request.dimensions == first.dimensions
    return same and may_share(first) and may_share(request) and size + size_of(request) <= _TOGETHER_SIZE


async def embed(
    ask: Ask, requests: Sequence[Request], context: JobContext, offer: Offer, version: str = ""
) -> list[Vectors]:
    """The vectors of ``requests``, asked for in one call; where one of them spoils it, one by one.

    A server of a ``version`` that makes none with the model is not asked.
    """
    if not makes_vectors(offer.capabilities, version):
        words = f"{offer.model} makes no vectors with Ollama {version}; name an embedding model"
        return [Vectors(Answer(fault=Cause.NOT_SUPPORTED.fault(words)), {}) for _ in requests]
    answered = await ask(_body(requests, context, offer))
    if answered.fault is not None:
        if len(requests) > 1 and answered.fault.kind == faults.REQUEST:
            return [(await embed(ask, [request], context, offer))[0] for request in requests]
        return [Vectors(Answer(fault=answered.fault), {}) for _ in requests]
    return _shared(requests, answered)


def _body(requests: Sequence[Request], context: JobContext, offer: Offer) -> dict[str, Any]:
    first = requests[0]
    # A model of text (up to 0.24) stays loaded as for prompts: else each call after one of the other kind loads it.
    talks = bool(offer.capabilities) and "embedding" not in offer.capabilities
    options = {name: value for name, value in (context.options | first.options).items() if name not in LOAD_OPTIONS}
    body: dict[str, Any] = {
        "model": offer.model,
        "input": [text for request in requests for text in texts_of(request)],
        "truncate": False,
        "options": options | (offer.load_options if talks else for_vectors(offer.load_options)),
    }
    return body | ({"dimensions": first.dimensions} if first.dimensions else {})


def _shared(requests: Sequence[Request], answered: Embedded) -> list[Vectors]:
    """Each request's vectors, and its share of the tokens by length: Ollama counts those of a call together."""
    lengths = [sum(map(len, texts_of(request))) for request in requests]
    total, begin, counted, length = sum(lengths), 0, 0, 0
    found = []
    for request, own in zip(requests, lengths, strict=True):
        count = len(texts_of(request))
        vectors = answered.vectors[begin : begin + count]
        begin, length = begin + count, length + own
        until = answered.prompt_tokens * length // max(1, total)
        extra: dict[str, Any] = {"embedding": vectors[0]} if isinstance(request.embed, str) else {"embeddings": vectors}
        if len(requests) > 1:
            extra["together"] = len(requests)
        if request.encoding:
            extra["encoding"] = request.encoding
        found.append(Vectors(Answer(done_reason="stop", prompt_tokens=until - counted), extra))
        counted = until
    return found
