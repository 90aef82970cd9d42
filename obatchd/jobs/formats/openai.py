"""Lines of OpenAI's Batch API: ``custom_id``, ``method``, ``url`` and ``body``, read as requests of ours.

What that API and vLLM's run-batch accept is accepted; what Ollama cannot do is refused line by line with that API's
words, never left out. Format: https://platform.openai.com/docs/api-reference/batch/request-input; codes as in
https://learn.microsoft.com/azure/ai-services/openai/how-to/batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from obatchd.jobs.formats.source import raw_fields
from obatchd.jobs.model import RequestRefused

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
# Run-time options that the two APIs share, by their name there; the last ones are vLLM's.
_SHARED = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p")
_OPTIONS = {**dict(zip(_SHARED, _SHARED, strict=True)), "repetition_penalty": "repeat_penalty"}
_LEVELS: dict[str, bool | str] = {"none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high"}
_ROLES = {"developer": "system", "function": "tool"}
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
_UNSUPPORTED = ("functions", "function_call", "audio", "logit_bias", "logprobs", "top_logprobs", "suffix", "echo")
_ID = re.compile(rb'"custom_id"\s*:\s*"((?:[^"\\]|\\.){1,200})"')
_LOOKED_AT_LINES = 20
_document = msgspec.json.Decoder()
_string = msgspec.json.Decoder(str)


def looks_like_batch(head: bytes) -> bool:
    """Whether this begins a batch file: its first line that is JSON decides; one too long for a look counts."""
    if not all(name in head for name in (b'"custom_id"', b'"url"', b'"body"')):
        return False
    *lines, rest = head.split(b"\n")
    for line in (lines or [rest])[:_LOOKED_AT_LINES]:
        try:
            return is_batch_line(raw_fields(line))
        except (ValueError, RecursionError):
            continue
    return len(lines) <= 1


def is_batch_line(fields: dict[str, msgspec.Raw]) -> bool:
    return fields.keys() >= {"custom_id", "url", "body"} and not fields.keys() & {"prompt", "content", "messages"}


def label_in(raw: bytes) -> str | None:
    """The id in a line that is no JSON, as far as it can be made out."""
    match = _ID.search(raw)
    try:
        return _string.decode(b'"' + match[1] + b'"') if match else None
    except ValueError:
        return None


def batch_fields(raw: bytes) -> dict[str, Any]:
    """The fields of our request that a line amounts to.

    Raises RequestRefused where it is no such line, or asks for something that Ollama cannot do.
    """
    line = _line(raw)
    read = _ENDPOINTS.get(line["url"])
    if read is None:
        raise RequestRefused("url_mismatch", f"the url {line['url']!r} is none of {', '.join(_ENDPOINTS)}")
    body: dict[str, Any] = line["body"]
    _require_supported(body)
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise RequestRefused("invalid_request", "model must be a text")
    return {"id": line["custom_id"], "url": line["url"], "model": model, **read(body)}


def _line(raw: bytes) -> dict[str, Any]:
    try:
        line = _document.decode(raw)
    except (ValueError, RecursionError) as error:
        raise RequestRefused("invalid_json_line", str(error)) from None
    if not isinstance(line, dict):
        raise RequestRefused("invalid_json_line", "it is not a JSON object")
    for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if name not in line:
            raise RequestRefused("missing_required_parameter", f"there is no {name}")
        if not isinstance(line[name], kind) or not line[name]:
            raise RequestRefused("invalid_request", f"{name} must be {'a text' if kind is str else 'an object'}")
    if line["method"] != "POST":
        raise RequestRefused("invalid_request", f"the method {line['method']!r} is not POST")
    return line


def _require_supported(body: dict[str, Any]) -> None:
    if body.get("stream"):
        raise RequestRefused("unsupported_parameter", "a batch has no stream: leave stream out")
    for name in _UNSUPPORTED:
        if body.get(name) not in _NOTHING:
            raise RequestRefused("unsupported_parameter", f"{name} is not supported")
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1):
            raise RequestRefused("unsupported_parameter", f"{name} must be 1")


def _generation(body: dict[str, Any]) -> dict[str, Any]:
    options = {ours: body[name] for name, ours in _OPTIONS.items() if body.get(name) is not None}
    if bad := [
        name for name, value in options.items() if isinstance(value, bool) or not isinstance(value, int | float)
    ]:
        raise RequestRefused("invalid_request", f"{bad[0]} must be a number")
    stop = body.get("stop")
    if stop not in _NOTHING:
        options["stop"] = [stop] if isinstance(stop, str) else stop
        if not isinstance(options["stop"], list) or not all(isinstance(text, str) for text in options["stop"]):
            raise RequestRefused("invalid_request", "stop must be a text or a list of texts")
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise RequestRefused("invalid_request", "the token limit must be a number of tokens")
    return {"options": options, "max_response_tokens": limit, "format": _format(body.get("response_format"))}


def _format(wanted: Any) -> str | dict[str, Any] | None:
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return ""
    if kind == "json_object":
        return "json"
    schema = wanted.get("json_schema", {}) if kind == "json_schema" else None
    if isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
        found: dict[str, Any] = schema["schema"]
        return found
    raise RequestRefused("invalid_request", "response_format must be of type text, json_object or json_schema")


def _chat(body: dict[str, Any]) -> dict[str, Any]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestRefused("missing_required_parameter", "there are no messages in the body")
    effort = body.get("reasoning_effort")
    if effort is not None and (not isinstance(effort, str) or effort not in _LEVELS):
        raise RequestRefused("invalid_request", f"reasoning_effort {effort!r} is none of {', '.join(_LEVELS)}")
    names: dict[str, str] = {}
    return {
        **_generation(body),
        "messages": [_message(message, names) for message in messages],
        "think": None if effort is None else _LEVELS[effort],
        "tools": _tools(body),
    }


def _tools(body: dict[str, Any]) -> list[dict[str, Any]] | None:
    tools, choice = body.get("tools"), body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise RequestRefused(
            "unsupported_parameter", "tool_choice must be auto or none: Ollama cannot be made to call one"
        )
    if not tools or choice == "none":
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool.get("function") for tool in tools):
        raise RequestRefused("invalid_request", "tools must be a list of functions")
    return tools


def _message(message: Any, names: dict[str, str]) -> dict[str, Any]:
    """A message as Ollama has it; ``names`` of the functions called so far, by the id of the call."""
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str):
        raise RequestRefused("invalid_request", "every message needs a role")
    texts, images = _content(message.get("content"))
    made: dict[str, Any] = {"role": _ROLES.get(role, role), "content": "\n".join(texts)}
    if images:
        made["images"] = images
    if message.get("tool_calls") not in _NOTHING:
        calls = message["tool_calls"]
        made["tool_calls"] = [_tool_call(call, names) for call in (calls if isinstance(calls, list) else [calls])]
    if role == "tool" and isinstance(name := names.get(str(message.get("tool_call_id"))), str):
        made["tool_name"] = name
    return made


def _tool_call(call: Any, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestRefused("invalid_request", "a tool call needs a function with a name")
    arguments = function.get("arguments") or "{}"
    try:
        arguments = _document.decode(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise RequestRefused("invalid_request", "the arguments of a tool call must be a JSON object")
    names[str(call.get("id"))] = function["name"]
    return {"function": {"name": function["name"], "arguments": arguments}}


def _content(content: Any) -> tuple[list[str], list[str]]:
    if content is None or isinstance(content, str):
        return [content or ""], []
    texts: list[str] = []
    images: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        value = part.get(kind) if isinstance(kind, str) else None
        if kind == "image_url" and isinstance(value, dict):
            value = value.get("url")
        if not isinstance(value, str) or kind not in ("text", "refusal", "image_url"):
            raise RequestRefused(
                "invalid_request", "the content of a message must be a text, or a list of texts and images"
            )
        if kind != "image_url":
            texts.append(value)
        elif value.startswith("data:"):
            images.append(value)
        else:
            raise RequestRefused("unsupported_parameter", "images must be data URLs; addresses are not fetched")
    return texts, images


def _completion(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if prompt is None:
        raise RequestRefused("missing_required_parameter", "there is no prompt in the body")
    if not isinstance(prompt, str):
        raise RequestRefused("unsupported_parameter", "prompt must be one text; give each prompt a line of its own")
    return {**_generation(body), "prompt": prompt}


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    if "input" not in body:
        raise RequestRefused("missing_required_parameter", "there is no input in the body")
    if problem := embed_problem(body["input"], body.get("dimensions")):
        raise RequestRefused("invalid_request", problem)
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise RequestRefused("invalid_request", "encoding_format must be float or base64")
    return {
        "embed": body["input"], "dimensions": body.get("dimensions"), "encoding": body.get("encoding_format") or "",
    }  # fmt: skip


def embed_problem(texts: Any, dimensions: Any = None) -> str:
    """Why something cannot be embedded; empty when it can."""
    given = [texts] if isinstance(texts, str) else texts
    if not isinstance(given, list) or not given or not all(isinstance(text, str) for text in given):
        return "input must be a text or a list of texts; tokens are not supported"
    if not all(text.strip() for text in given):
        return "a text of input is empty"
    if dimensions is not None and (isinstance(dimensions, bool) or not isinstance(dimensions, int) or dimensions < 1):
        return "dimensions must be a number"
    return ""


_ENDPOINTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    CHAT: _chat, COMPLETIONS: _completion, EMBEDDINGS: _embeddings,
}  # fmt: skip
