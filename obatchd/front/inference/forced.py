"""Calls that leave a model no choice but to call one function.

Ollama holds no model to a call, but to the form of an answer: so the model is asked for the arguments, as JSON by the
function's schema, and what it says becomes the call.
"""

from __future__ import annotations

from typing import Any

import msgspec

from obatchd.errors import ApiError

_CHOICE, _TOOLS, _MESSAGES, _FORMAT = "tool_choice", "tools", "messages", "response_format"
_ANYTHING = {"type": "object"}  # the parameters of a function that names none
_encode = msgspec.json.Encoder().encode


def take_forced(fields: dict[str, msgspec.Raw]) -> str | None:
    """The function that has to be called, which ``fields`` then ask for as a form; None: the model may choose.

    Raises ApiError where it is not among the tools. A choice among several functions is left to the reader.
    """
    choice, tools = (_decoded(fields.get(name)) for name in (_CHOICE, _TOOLS))
    named = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(tools, list) or not (isinstance(named, dict) or (choice == "required" and len(tools) == 1)):
        return None
    functions = [
        tool["function"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    name = named.get("name") if isinstance(named, dict) else None
    function = next((one for one in functions if named is None or one.get("name") == name), None)
    if function is None or not isinstance(function.get("name"), str):
        raise ApiError("tool_choice names a function that is not among the tools", param=_CHOICE)
    del fields[_CHOICE], fields[_TOOLS]
    schema = function.get("parameters") or _ANYTHING
    form = {"type": "json_schema", "json_schema": {"name": function["name"], "schema": schema}}
    fields[_FORMAT] = msgspec.Raw(_encode(form))
    if isinstance(messages := _decoded(fields.get(_MESSAGES)), list):
        told = {"role": "system", "content": _words(function, schema)}
        fields[_MESSAGES] = msgspec.Raw(_encode([told, *messages]))
    forced: str = function["name"]
    return forced


def call_of(name: str, arguments: str, key: str) -> dict[str, Any]:
    """The call, with the id that it has in an answer whose id ends in ``key``."""
    return {"id": f"call_{key}-1", "type": "function", "function": {"name": name, "arguments": arguments}}


def as_calls(body: bytes, name: str, key: str) -> bytes:
    """A whole answer whose texts are the arguments of a function, with its calls."""
    answer: dict[str, Any] = msgspec.json.decode(body)
    for choice in answer["choices"]:
        message = choice["message"]
        message["tool_calls"] = [call_of(name, message["content"], f"{key}-{choice['index']}")]
        message["content"] = None
    return _encode(answer)


def _words(function: dict[str, Any], schema: Any) -> str:
    """What the model would read of its tools."""
    about = f": {function['description']}" if function.get("description") else ""
    return (
        f"Call the function {function['name']}{about}\n"
        f"Answer with its arguments alone, as JSON by this schema:\n{_encode(schema).decode()}"
    )


def _decoded(raw: msgspec.Raw | None) -> Any:
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the reader says why
