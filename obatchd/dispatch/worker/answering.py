"""Answers that must have a form: asked for, checked, asked for once more, and compared with their source."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from obatchd.dispatch.records import Found
from obatchd.ollama import faults
from obatchd.ollama.client import Answer
from obatchd.ollama.faults import Cause
from obatchd.prompts.structured import AnswerFormat, FormatError, Mismatch, Parsed, answer_format, ungrounded
from obatchd.words import counted

Body = dict[str, Any]
Ask = Callable[[Body], Awaitable[Answer]]
_TRIES = 2
_SOURCE_ROLES = ("user", "tool")


async def structured_answer(ask: Ask, body: Body, in_source: Sequence[str]) -> Found:
    """The answer to ``body``, whose ``format`` it fits or else has the fault, and more fields for its record.

    A model whose answer does not fit is shown the answer and the reason, once. An answer that its token limit cut would
    be cut again, so there is no second try. The server is told of the format what it can take (``prompts.grammar``);
    one that refuses even that is asked for any JSON, or where that need not be an object, without a format.
    """
    notes: list[str] = []
    try:
        wanted = answer_format(body["format"])
        for_server = wanted.for_server
        notes += for_server.notes
        body = {**body, "format": for_server.format}
        answer, parsed, tries = await _asked(partial(_ask, ask, notes), body, wanted)
        extra: dict[str, Any] = {"format_tries": tries} if tries > 1 else {}
        if notes:
            extra["notes"] = list(dict.fromkeys(notes))
        if parsed is not None:
            extra["data"] = parsed.raw
            if in_source:
                extra["ungrounded"] = ungrounded(parsed.data, in_source, _source(body))
    except FormatError as error:
        return Answer(fault=Cause.INVALID_FORMAT.fault(str(error))), {}
    return answer, extra


def as_it_ended(answer: Answer) -> Answer:
    """``answer`` without the fault of having no text, or of being cut by its token limit before it fits its format.

    OpenAI's API and Ollama's own pass such answers on with the reason, and whoever waits for one can ask again.
    """
    fault = answer.fault
    cut = answer.done_reason == "length"
    if fault is None or not (
        fault.code == Cause.EMPTY_RESPONSE.code or (cut and fault.code == Cause.FORMAT_MISMATCH.code)
    ):
        return answer
    return answer._replace(fault=None)


async def _ask(ask: Ask, notes: list[str], body: Body) -> Answer:
    answer = await ask(body)
    if answer.fault is None or answer.fault.code != Cause.INVALID_FORMAT.code or not isinstance(body["format"], dict):
        return answer
    is_object = body["format"].get("type") == "object"  # and so is any JSON, to Ollama
    asked = "for any JSON" if is_object else "without a format"
    notes.append(f"format: the server was asked {asked}, because it refuses the schema ({answer.fault.message})")
    others = {name: value for name, value in body.items() if name != "format"}
    return await ask({**others, "format": "json"} if is_object else others)


async def _asked(ask: Ask, body: Body, wanted: AnswerFormat) -> tuple[Answer, Parsed | None, int]:
    earlier: Answer | None = None
    reason = ""
    for tries in range(1, _TRIES + 1):
        answer = await ask(body)
        if answer.fault is not None:
            if earlier is None or answer.fault.kind != faults.REQUEST:
                return answer, None, tries
            # The conversation with the error in it does not fit, say: the first answer is reported.
            break
        answer = _together(earlier, answer)
        try:
            return answer, wanted.parse(answer.text), tries
        except Mismatch as mismatch:
            reason = str(mismatch)
        if answer.done_reason == "length":
            reason = f"it was cut by its token limit, raise max_response_tokens ({reason})"
            earlier = answer
            break
        said = {"role": "assistant", "content": answer.text}
        wish = f"That does not fit the required format: {reason}. Answer again, with JSON only."
        earlier = answer
        body = {**body, "messages": [*body["messages"], said, {"role": "user", "content": wish}]}
    assert earlier is not None
    words = f"the answer does not fit the format after {counted(tries, 'try', 'tries')}: {reason}"
    return earlier._replace(fault=Cause.FORMAT_MISMATCH.fault(words)), None, tries


def _together(earlier: Answer | None, answer: Answer) -> Answer:
    """The later answer with the cost of both."""
    if earlier is None:
        return answer
    return answer._replace(
        prompt_tokens=earlier.prompt_tokens + answer.prompt_tokens,
        response_tokens=earlier.response_tokens + answer.response_tokens,
        eval_s=earlier.eval_s + answer.eval_s,
        prompt_s=earlier.prompt_s + answer.prompt_s,
    )


def _source(body: Body) -> str:
    """The texts that the answer may draw on: not the system message, which may hold examples."""
    messages = body["messages"]
    return "\n".join(str(m.get("content", "")) for m in messages if m.get("role") in _SOURCE_ROLES)
