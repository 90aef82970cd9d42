"""The published shapes of OpenAI's Batch API, as JSON Schemas.

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
