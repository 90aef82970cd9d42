"""Functions that the model may ask for."""

from __future__ import annotations

from typing import Any

from obatchd.jobs.formats.reader.fields import Fields, parsed


def tools(fields: Fields, name: str) -> list[dict[str, Any]] | None:
    """The functions in the field ``name``, in Ollama's shape. Raises RequestRefused where they are none."""
    given = fields.take(name)
    found = parsed(given) if isinstance(given, str) else given
    if not found or _choice_of(fields) == "none":
        return None
    if not isinstance(found, list):
        raise fields.wrong(name, "a list of functions", given)
    return [_tool(fields, tool, given) for tool in found]


def _tool(fields: Fields, tool: Any, given: Any) -> dict[str, Any]:
    """A function in the shape of Ollama and of Chat Completions; Responses and Anthropic have flat ones."""
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
        return tool
    if isinstance(tool, dict) and isinstance(tool.get("name"), str) and tool.get("type", "function") == "function":
        about = {"name": tool["name"], "description": tool.get("description"),
                 "parameters": tool.get("parameters", tool.get("input_schema"))}  # fmt: skip
        return {"type": "function", "function": {key: value for key, value in about.items() if value is not None}}
    raise fields.wrong("tools", "a list of functions", given)


def tool_choice(fields: Fields, name: str) -> None:
    """Refuse or note a choice that no model can be held to."""
    if _choice_of(fields) not in (None, "auto", "none"):
        fields.cannot(name, "it must be auto or none, as no model can be made to call a function")


def _choice_of(fields: Fields) -> Any:
    choice = fields.take("tool_choice")
    return choice.get("type") if isinstance(choice, dict) else choice
