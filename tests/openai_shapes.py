"""The published shapes of OpenAI's Batch API and its files, as JSON Schemas.

After ``BatchRequestOutput``, ``CreateChatCompletionResponse``, ``CreateCompletionResponse`` and
``CreateEmbeddingResponse`` of https://github.com/openai/openai-openapi, which names these properties and requires them.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(required: Schema, **optional: Schema) -> Schema:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
_USAGE = _object({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT})
_FINISH: Schema = {"enum": ["stop", "length", "tool_calls", "content_filter", "function_call"]}
_MESSAGE = _object(
    {"role": {"const": "assistant"}, "content": {"type": ["string", "null"]}, "refusal": {"type": ["string", "null"]}}
)
_CHAT_CHOICE = _object(
    {"finish_reason": _FINISH, "index": COUNT, "message": _MESSAGE, "logprobs": {"type": ["object", "null"]}}
)
CHAT = _object(
    {
        "id": NAME, "object": {"const": "chat.completion"}, "created": COUNT, "model": NAME,
        "choices": {"type": "array", "items": _CHAT_CHOICE, "minItems": 1},
    },
    usage=_USAGE,
)  # fmt: skip
# ``CreateChatCompletionStreamResponse`` of the same.
_DELTA = _object(
    {}, role={"const": "assistant"}, content={"type": ["string", "null"]}, refusal={"type": ["string", "null"]}
)
_CHUNK_CHOICE = _object({"delta": _DELTA, "finish_reason": {"anyOf": [_FINISH, {"type": "null"}]}, "index": COUNT})
CHUNK = _object(
    {
        "id": NAME, "object": {"const": "chat.completion.chunk"}, "created": COUNT, "model": NAME,
        "choices": {"type": "array", "items": _CHUNK_CHOICE},
    },
    usage={"anyOf": [_USAGE, {"type": "null"}]},
)  # fmt: skip
_TEXT_CHOICE = _object(
    {
        "finish_reason": {"enum": ["stop", "length", "content_filter"]}, "index": COUNT,
        "logprobs": {"type": ["object", "null"]}, "text": TEXT,
    }
)  # fmt: skip
COMPLETION = _object(
    {
        "id": NAME, "object": {"const": "text_completion"}, "created": COUNT, "model": NAME,
        "choices": {"type": "array", "items": _TEXT_CHOICE, "minItems": 1},
    },
    usage=_USAGE,
)  # fmt: skip
_EMBEDDING = _object(
    {
        "index": COUNT, "object": {"const": "embedding"},
        "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}, "minItems": 1}, NAME]},
    }
)  # fmt: skip
EMBEDDINGS = _object(
    {
        "object": {"const": "list"}, "model": NAME, "data": {"type": "array", "items": _EMBEDDING, "minItems": 1},
        "usage": _object({"prompt_tokens": COUNT, "total_tokens": COUNT}),
    }
)  # fmt: skip
_ERROR_BODY = _object(
    {"error": _object({"code": {"type": ["string", "null"]}, "message": TEXT, "param": {}, "type": NAME})}
)


def _line(response: Schema, error: Schema) -> Schema:
    line = _object({"id": NAME, "custom_id": TEXT, "response": response, "error": error})
    return {**line, "additionalProperties": False}


def _response(status: Schema, body: Schema) -> Schema:
    return _object({"status_code": status, "request_id": NAME, "body": body})


OUTPUT_LINE = _line(_response({"const": 200}, {"anyOf": [CHAT, COMPLETION, EMBEDDINGS]}), {"type": "null"})
ERROR_LINE: Schema = {
    "anyOf": [
        _line(_response({"type": "integer", "minimum": 400}, _ERROR_BODY), {"type": "null"}),
        _line({"type": "null"}, _object({"code": NAME, "message": NAME})),
    ]
}

_MAYBE_COUNT: Schema = {"type": ["integer", "null"], "minimum": 0}
_MAYBE_NAME: Schema = {"type": ["string", "null"], "minLength": 1}
# ``OpenAIFile``, ``Batch``, ``ListFilesResponse``, ``ListBatchesResponse``, ``ErrorResponse`` of the same.
FILE = _object(
    {
        "id": NAME, "object": {"const": "file"}, "bytes": COUNT, "created_at": COUNT, "filename": NAME,
        "purpose": {"enum": ["batch", "batch_output"]}, "status": {"enum": ["uploaded", "processed", "error"]},
    },
    expires_at=_MAYBE_COUNT,
)  # fmt: skip
_FAULT = _object(
    {"code": NAME, "message": TEXT}, line={"type": ["integer", "null"]}, param={"type": ["string", "null"]}
)
_ENDS = ("completed", "failed", "expired", "cancelled")
BATCH = _object(
    {
        "id": NAME, "object": {"const": "batch"}, "endpoint": NAME, "input_file_id": NAME, "completion_window": NAME,
        "created_at": COUNT,
        "status": {"enum": [*_ENDS, "validating", "in_progress", "finalizing", "cancelling"]},
    },
    errors={
        "anyOf": [{"type": "null"}, _object({"object": {"const": "list"}, "data": {"type": "array", "items": _FAULT}})]
    },
    output_file_id=_MAYBE_NAME,
    error_file_id=_MAYBE_NAME,
    **{
        f"{name}_at": _MAYBE_COUNT
        for name in (*_ENDS, "in_progress", "expires", "finalizing", "cancelling")
    },
    request_counts=_object({"total": COUNT, "completed": COUNT, "failed": COUNT}),
    usage=_object(
        {
            "input_tokens": COUNT, "output_tokens": COUNT, "total_tokens": COUNT,
            "input_tokens_details": _object({"cached_tokens": COUNT}),
            "output_tokens_details": _object({"reasoning_tokens": COUNT}),
        }
    ),
    model=NAME,
    metadata={"type": ["object", "null"], "additionalProperties": TEXT},
)  # fmt: skip
_MAYBE_TEXT: Schema = {"type": ["string", "null"]}
PROBLEM = _object({"error": _object({"message": TEXT, "type": TEXT, "param": _MAYBE_TEXT, "code": _MAYBE_TEXT})})


def listed(items: Schema) -> Schema:
    """A list of these."""
    whole = {"object": {"const": "list"}, "data": {"type": "array", "items": items}, "has_more": {"type": "boolean"}}
    return _object({**whole, "first_id": _MAYBE_NAME, "last_id": _MAYBE_NAME})
