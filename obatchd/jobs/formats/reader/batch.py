"""Lines of batch files: an id, an address and the body of a call, as OpenAI's Batch API and others have them.

Formats: https://platform.openai.com/docs/api-reference/batch/request-input (vLLM's run-batch, Azure and Mistral take
the same lines, without a method, with other addresses, or with none) and
https://docs.claude.com/en/api/creating-message-batches.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from obatchd.jobs.formats.reader.fields import (
    LEFT_OUT,
    OPTION,
    OUTSIDE,
    Fields,
    again_of,
    fields_of,
    is_object,
    label_of,
    quoted,
    shown,
)
from obatchd.jobs.formats.reader.said import CHAT_NAMES, TEXT_NAMES, embed_problem, images_of, last_said, messages_of
from obatchd.jobs.formats.reader.settings import SETTINGS, settings
from obatchd.jobs.model import RequestRefused

if TYPE_CHECKING:
    from obatchd.jobs.formats.field_notes import FieldNotes

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
_BODIES = ("body", "params", "modelInput", "request")  # the first one first
_MARKS = frozenset({"custom_id", "id", "key", "method", "recordId", "url"})
_VENDORS = {"contents": "Gemini", "inputText": "Titan", "chat_history": "Cohere"}
_OURS = frozenset({*TEXT_NAMES, *CHAT_NAMES, "input"})
_PATH = re.compile(
    r"(?:\A|/)(chat/completions|completions|embeddings|responses|messages|api/(?:chat|generate|embed))\Z"
)
# Fields of bodies that bear on no answer, and those that say what is done anyway.
_NO_EFFECT = frozenset(
    {"user", "store", "metadata", "service_tier", "stream_options", "parallel_tool_calls", "prompt_cache_key",
     "safety_identifier", "best_of", "anthropic_version", "truncate", "truncation", "keep_alive", "modalities"}
)  # fmt: skip
# Codes of that API's for ours: https://learn.microsoft.com/azure/ai-services/openai/how-to/batch
_CODES = {
    "wrong_type": "invalid_request", "bad_image": "invalid_request", "bad_json": "invalid_json_line",
    "missing_prompt": "missing_required_parameter", "not_supported": "unsupported_parameter",
}  # fmt: skip


def envelope(fields: dict[str, msgspec.Raw]) -> str | None:
    """The field that holds the body, where this is a line of a batch file; None where it is not."""
    names = fields.keys()
    if names.isdisjoint(_BODIES) or names.isdisjoint(_MARKS) or not names.isdisjoint(_OURS):
        return None
    return next((name for name in _BODIES if is_object(fields.get(name))), None)


def is_batch_line(raw: bytes) -> bool | None:
    """Whether this is a line of a batch file whose results are written as OpenAI does; None where it is no JSON."""
    try:
        return envelope(fields_of(raw)[0]) == "body"
    except RequestRefused as refused:
        return False if refused.code == "wrong_type" else None
    except RecursionError:
        return None


def batch_request(
    fields: dict[str, msgspec.Raw], notes: list[str], name: str | None, field_notes: FieldNotes | None = None
) -> dict[str, Any]:
    """The fields of our request that a line amounts to, whose ``envelope`` is ``name``.

    ``field_notes`` hear of those that may be meant otherwise. Raises RequestRefused, with a code of that API's, where
    it is no such line, or asks for what Ollama cannot do.
    """
    try:
        if name is not None:
            return _called(fields, name, notes, field_notes)
        if "body" in fields and not is_object(fields["body"]):
            raise RequestRefused("wrong_type", f"body must be an object, not {shown(fields['body'])}")
        missing = "custom_id" if "body" in fields else "body"
        raise RequestRefused("missing_prompt", f"there is no {missing}: it is no line of a batch file")
    except RequestRefused as refused:
        raise RequestRefused(_CODES.get(refused.code, refused.code), refused.reason) from None


def _called(
    line: dict[str, msgspec.Raw], name: str, notes: list[str], field_notes: FieldNotes | None
) -> dict[str, Any]:
    outer, label = Fields(line, notes, strict=True), label_of(line)
    method = outer.peek("method")
    if label is None:
        if (custom_id := outer.peek("custom_id")) is None:
            raise RequestRefused("missing_prompt", "there is no custom_id")
        raise RequestRefused("wrong_type", f"custom_id must be a text, not {shown(custom_id)}")
    if method is not None and (not isinstance(method, str) or method.upper() != "POST"):
        raise RequestRefused("wrong_type", f"the method {method!r} is not POST")
    body = Fields(fields_of(bytes(line[name]))[0], notes, strict=True)
    address = outer.peek("url")
    url = _endpoint(address, name, body)
    given = _ENDPOINTS[url](body)
    given = settings(body) | given
    if given.get("n", 1) > 1 and url not in (CHAT, COMPLETIONS):
        body.cannot("n", f"it must be 1 for {url}")
    if unknown := [key for key in body.rest() if key not in _NO_EFFECT and body.peek(key)]:
        notes.append(f"{quoted(unknown)} of the {name} is left out: obatchd knows no such field")
    # Whether there may be more than id, method, address and body.
    outside = len(line) > 4 or (len(line) > 2 and (method is None or address is None))
    if field_notes is not None and (unknown or outside or notes):  # options that are unknown have their note
        options = (key for key in body.odd if key.startswith(OPTION))
        beside = (OUTSIDE + key for key in line if key in SETTINGS)
        field_notes.odd((*options, *(LEFT_OUT + key for key in unknown), *beside))
    return {"id": label, "url": url if name == "body" else "", "notes": notes, "again": again_of(line), **given}


def _endpoint(url: Any, name: str, body: Fields) -> str:
    """The endpoint that a line is for; where it names none, the body shows it."""
    if isinstance(url, str) and url in _ENDPOINTS:
        return url
    if isinstance(url, str) and url:
        known = _PATH.search(_path_of(url))
        found = f"/{'' if known[1].startswith('api/') else 'v1/'}{known[1]}" if known else ""
        if found in _ENDPOINTS:
            return found
        raise RequestRefused("url_mismatch", f"the url {url!r} is none of {', '.join(_ENDPOINTS)}")
    if url is not None:
        raise RequestRefused("wrong_type", f"url must be a text, not {shown(url)}")
    if "messages" in body.raw:
        return CHAT if name == "body" else MESSAGES
    if "prompt" in body.raw:
        return COMPLETIONS
    vendor = next((f" (of {vendor}'s)" for key, vendor in _VENDORS.items() if key in body.raw), "")
    raise RequestRefused(
        "missing_prompt",
        f"there is no url, and its {name} has neither messages nor a prompt, but {quoted(body.raw)}{vendor}: lines of "
        f"OpenAI's Batch API are read, and those of others whose {name} has messages",
    )


def _path_of(url: str) -> str:
    """The path in a full address or a bare one; empty where it is no address."""
    try:
        return urlsplit(url).path.rstrip("/").lower()
    except ValueError:  # a bracket of an IPv6 address that is not closed, and its like
        return ""


def _chat(body: Fields) -> dict[str, Any]:
    if "messages" not in body.raw or not body.peek("messages"):
        raise RequestRefused("missing_prompt", "there are no messages in the body")
    messages = messages_of(body, "messages", body.take("messages"))
    return {"messages": messages, "prompt": last_said(messages)}


def _completion(body: Fields) -> dict[str, Any]:
    prompt = body.take("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if prompt is None:
        raise RequestRefused("missing_prompt", "there is no prompt in the body")
    if not isinstance(prompt, str):
        raise RequestRefused("not_supported", "prompt must be one text; give each prompt a line of its own")
    images = images_of(body)
    if not prompt.strip() and not images:
        raise RequestRefused("wrong_type", "there is no text in it")
    return {"prompt": prompt, "images": images}


def _embeddings(body: Fields) -> dict[str, Any]:
    if "input" not in body.raw:
        raise RequestRefused("missing_prompt", "there is no input in the body")
    texts, dimensions, encoding = body.take("input"), body.take("dimensions"), body.take("encoding_format")
    if isinstance(dimensions, float) and dimensions.is_integer():
        dimensions = int(dimensions)
    if problem := embed_problem(texts, dimensions):
        raise RequestRefused("wrong_type", problem)
    if encoding not in (None, "float", "base64"):
        raise RequestRefused("wrong_type", "encoding_format must be float or base64")
    prompt = texts if isinstance(texts, str) else ""
    return {"embed": texts, "prompt": prompt, "dimensions": dimensions, "encoding": encoding or ""}


def responses(body: Fields) -> dict[str, Any]:
    """The body of ``/v1/responses``: a text or a list of items, instructions, and a format in ``text``."""
    given = body.take("input")
    if not given:
        raise RequestRefused("missing_prompt", "there is no input in the body")
    items = [_item(item) for item in given] if isinstance(given, list) else given
    messages = messages_of(body, "input", items)
    if (instructions := body.take("instructions")) is not None:
        if not isinstance(instructions, str):
            raise body.wrong("instructions", "a text", instructions)
        messages.insert(0, {"role": "system", "content": instructions})
    found: dict[str, Any] = {"messages": messages, "prompt": last_said(messages)}
    text = body.take("text")
    if isinstance(text, dict) and text.get("format") is not None:
        form = Fields({"format": msgspec.Raw(msgspec.json.encode(text["format"]))}, body.notes, strict=body.strict)
        found |= settings(form)
    return found


def _item(item: Any) -> Any:
    """An item of a conversation as a message: calls of functions and their outputs are items of their own there."""
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [{**item, "id": item.get("call_id")}]}
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}
    if kind not in (None, "message"):
        raise RequestRefused("not_supported", f"an item of the type {shown(kind)} cannot be sent")
    return item


_ENDPOINTS: dict[str, Callable[[Fields], dict[str, Any]]] = {
    CHAT: _chat, COMPLETIONS: _completion, EMBEDDINGS: _embeddings, RESPONSES: responses, MESSAGES: _chat,
    "/api/chat": _chat, "/api/generate": _completion, "/api/embed": _embeddings,
}  # fmt: skip
