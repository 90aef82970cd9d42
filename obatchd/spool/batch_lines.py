"""Results of an OpenAI batch file, as the lines that API writes into its output and error files.

An answer of a server, good or bad, stands in ``response`` with a status; other failures stand in ``error``.
Format: https://platform.openai.com/docs/api-reference/batch/request-output and the response objects of the endpoints.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from obatchd.jobs.model import Outcome, repeated_id

# That API's names for ours.
_CODES = {
    "bad_json": "invalid_json_line", "invalid_utf8": "invalid_json_line", "duplicate_id": "duplicate_custom_id",
    "too_many_requests": "too_many_tasks", "context_exceeded": "context_length_exceeded",
    "cancelled": "batch_cancelled", "expired": "batch_expired",
}  # fmt: skip
# Failures of an attempt whose cause is the request, by the status that API answers them with.
_STATUS = {
    "context_exceeded": 400, "invalid_format": 400, "format_mismatch": 400, "invalid_option": 400, "bad_request": 400,
    "not_supported": 400, "empty_prompt": 400, "empty_response": 400, "model_not_found": 404, "forbidden": 403,
    "timeout": 504,
}  # fmt: skip
LINE_START = b'{"id":"batch_req_'  # of every line
_encode = msgspec.json.Encoder().encode


class _Function(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Call(msgspec.Struct):
    function: _Function


class _Answer(msgspec.Struct):
    """The parts of an answer that a choice is made of."""

    response: str = ""
    think: str = ""
    tool_calls: list[_Call] = []
    done_reason: str = ""


class _Record(_Answer, kw_only=True):
    """The parts of a result that a line is made of."""

    id: str
    line: int
    repeat: int = 0
    choices: list[_Answer] = []
    url: str = ""
    model: str = ""
    attempts: int = 0
    finished_at: str = "1970-01-01T00:00:00Z"
    code: str = ""
    message: str = ""
    prompt_tokens: int = 0
    response_tokens: int = 0
    embedding: msgspec.Raw = msgspec.Raw()  # empty: none
    embeddings: list[msgspec.Raw] | None = None
    encoding: str = ""


_record = msgspec.json.Decoder(_Record)
_vector = msgspec.json.Decoder(list[float])


def api_code(code: str) -> str:
    """That API's name for one of ours."""
    return _CODES.get(code, code)


def api_status(code: str) -> int:
    """The status with which that API answers a failure of an attempt."""
    return _STATUS.get(code, 500)


def answer_body(key: str, raw: bytes) -> bytes:
    """A result as that API answers a call at once; its id ends in ``key``."""
    return _encode(_body(key, _record.decode(raw)))


def batch_line(job: str, outcome: Outcome, raw: bytes) -> bytes:
    """The line of a result ``raw``, for the output file if it succeeded, else for the error file."""
    record = _record.decode(raw)
    key = repeated_id(f"{job}-{record.line}", record.repeat)
    line: dict[str, Any] = {"id": f"batch_req_{key}", "custom_id": record.id, "response": None, "error": None}
    error = {"code": api_code(record.code), "message": record.message}
    if outcome is Outcome.SUCCEEDED:
        line["response"] = {"status_code": 200, "request_id": f"req_{key}", "body": _body(key, record)}
    elif outcome is Outcome.FAILED and record.attempts:
        status = api_status(record.code)
        kind = "invalid_request_error" if status < 500 else "server_error"
        body = {"error": {**error, "type": kind, "param": None}}
        line["response"] = {"status_code": status, "request_id": f"req_{key}", "body": body}
    else:
        line["error"] = error
    return _encode(line)


def _body(key: str, record: _Record) -> dict[str, Any]:
    if record.url.startswith("/api/"):
        return _native(record)
    if bytes(record.embedding) or record.embeddings is not None:
        return _embeddings(record)
    if record.url.endswith("/responses"):
        return _responses(key, record)
    chat = record.url.endswith("/chat/completions")
    answers = record.choices or [record]
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{key}",
        "object": "chat.completion" if chat else "text_completion",
        "created": _created(record),
        "model": record.model,
        "choices": [_choice(key, index, answer, chat=chat) for index, answer in enumerate(answers)],
        "usage": {
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.response_tokens,
            "total_tokens": record.prompt_tokens + record.response_tokens,
        },
    }


def _choice(key: str, index: int, answer: _Answer, *, chat: bool) -> dict[str, Any]:
    cut = answer.done_reason == "length"
    choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": "length" if cut else "stop"}
    if not chat:
        return choice | {"text": answer.response}
    message: dict[str, Any] = {"role": "assistant", "content": answer.response, "refusal": None}
    choice["message"] = message | ({"reasoning": answer.think} if answer.think else {})
    if answer.tool_calls:
        calls = _calls(f"{key}-{index}" if index else key, answer.tool_calls)
        choice["finish_reason"] = "tool_calls"
        choice["message"] |= {"content": answer.response or None, "tool_calls": calls}
    return choice


def _created(record: _Record) -> int:
    return int(datetime.fromisoformat(record.finished_at).timestamp())


def _native(record: _Record) -> dict[str, Any]:
    """What Ollama itself answers, of lines for its own endpoints."""
    tokens = {"prompt_eval_count": record.prompt_tokens, "eval_count": record.response_tokens}
    if record.url == "/api/embed":
        return {"model": record.model, "embeddings": _vectors(record), "prompt_eval_count": record.prompt_tokens}
    think = {"thinking": record.think} if record.think else {}
    calls = {"tool_calls": record.tool_calls} if record.tool_calls else {}
    said: dict[str, Any] = {"response": record.response, **think}
    if record.url == "/api/chat":
        said = {"message": {"role": "assistant", "content": record.response, **think, **calls}}
    head = {"model": record.model, "created_at": record.finished_at}
    return {**head, **said, "done": True, "done_reason": record.done_reason, **tokens}


def _responses(key: str, record: _Record) -> dict[str, Any]:
    """An object of the Responses API."""
    cut = record.done_reason == "length"
    status = "incomplete" if cut else "completed"
    output: list[dict[str, Any]] = []
    if record.think:
        thought = {"type": "summary_text", "text": record.think}
        output.append({"id": f"rs_{key}", "type": "reasoning", "summary": [thought]})
    if record.response or not record.tool_calls:
        text = {"type": "output_text", "text": record.response, "annotations": []}
        output.append({"id": f"msg_{key}", "type": "message", "role": "assistant", "status": status, "content": [text]})
    for call in _calls(key, record.tool_calls):
        output.append({"id": f"fc_{key}", "type": "function_call", "call_id": call["id"], **call["function"]})
    return {
        "id": f"resp_{key}",
        "object": "response",
        "created_at": _created(record),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "model": record.model,
        "output": output,
        "usage": {
            "input_tokens": record.prompt_tokens,
            "output_tokens": record.response_tokens,
            "total_tokens": record.prompt_tokens + record.response_tokens,
        },
    }


def _calls(key: str, calls: Sequence[_Call]) -> list[dict[str, Any]]:
    """Ollama's calls in that API's form: arguments are JSON in a text."""
    return [
        {
            "id": f"call_{key}-{number}",
            "type": "function",
            "function": {"name": call.function.name, "arguments": bytes(call.function.arguments).decode()},
        }
        for number, call in enumerate(calls, 1)
    ]


def _embeddings(record: _Record) -> dict[str, Any]:
    vectors = _vectors(record)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _base64(v) if record.encoding == "base64" else v}
            for index, v in enumerate(vectors)
        ],
        "model": record.model,
        "usage": {"prompt_tokens": record.prompt_tokens, "total_tokens": record.prompt_tokens},
    }


def _vectors(record: _Record) -> list[msgspec.Raw]:
    return record.embeddings if record.embeddings is not None else [record.embedding]


def _base64(raw: msgspec.Raw) -> str:
    """32-bit floats, lowest byte first, as that API packs them."""
    vector = _vector.decode(raw)
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
