"""Requests whose answers by real servers are kept in ``tests/recorded``: what the stand-in is held against.

``scripts/record_ollama.py`` asks them of a real server and writes ``ollama-<line>.json``. An answer with status 200 is
compared by its shape (keys and types), an error by its status and its words.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ollama_support import Answer, Ollama

RECORDED = Path(__file__).parents[1] / "recorded"
LINES = ("0.24", "0.33")
LONG = "word " * 9000
PAGE = "a " * 2500  # tokens for the stand-in, which counts words, and twice as many for the tiny model
WIDE = {"num_ctx": 8192}
FEW = {"num_predict": 12, "seed": 1, "temperature": 0}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello you"}], **fields}


def _generate(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "hello", **fields}


def _embed(**fields: Any) -> dict[str, Any]:
    return {"model": "vectors", "input": "hello", **fields}


_CHAT, _GENERATE, _EMBED, _SHOW = (("POST", f"/api/{path}") for path in ("chat", "generate", "embed", "show"))
_UNCUT = {"truncate": False, "shift": False}
EXCHANGES: dict[str, tuple[str, str, Any]] = {
    "tags": ("GET", "/api/tags", None),
    "load": (*_GENERATE, {"model": "tiny", "keep_alive": -1}),
    "ps": ("GET", "/api/ps", None),
    "chat as a stream": (*_CHAT, chat(options=FEW, format="json")),
    "chat as a whole": (*_CHAT, chat(options=FEW, format=SCHEMA, stream=False)),
    "generate as a stream": (*_GENERATE, _generate(options=FEW, format="json")),
    "generate raw": (*_GENERATE, _generate(options=FEW, format="json", raw=True, stream=False)),
    "no model to chat with": (*_CHAT, chat(model="nope")),
    "no model to generate with": (*_GENERATE, _generate(model="nope")),
    "no name of a model to generate with": (*_GENERATE, {}),
    "no name of a model to chat with": (*_CHAT, {}),
    "no model to show": (*_SHOW, {"model": "nope"}),
    "no name of a model to show": (*_SHOW, {}),
    "no model to embed with": (*_EMBED, _embed(model="nope")),
    "no model to delete": ("DELETE", "/api/delete", {"model": "nope"}),
    "a name with a blank": (*_CHAT, {"model": "a b"}),
    "no name to pull": ("POST", "/api/pull", {"model": ""}),
    "nothing to create from": ("POST", "/api/create", {"model": "x"}),
    "no body": (*_CHAT, None),
    "half a body": (*_CHAT, b'{"model":'),
    "no JSON": (*_CHAT, b"{bad"),
    "a number for a name": (*_CHAT, {"model": 5}),
    "a number for options": (*_GENERATE, {"model": "tiny", "options": 5}),
    "no thinking in chat": (*_CHAT, chat(think=True)),
    "no thinking in generate": (*_GENERATE, {"model": "tiny", "think": True}),
    "an unknown level of thinking": (*_CHAT, chat(think="silly")),
    "no tools": (*_CHAT, chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])),
    "a number without unit": (*_CHAT, chat(keep_alive="-1")),
    "no duration": (*_CHAT, chat(keep_alive="abc")),
    "text for temperature": (*_CHAT, chat(options={"temperature": "a"})),
    "text for num_ctx": (*_CHAT, chat(options={"num_ctx": "a"})),
    "text for stop": (*_CHAT, chat(options={"stop": "a"})),
    "a format that is none": (*_CHAT, chat(format="xml")),
    "a type that is none": (*_CHAT, chat(format={"type": "silly"})),
    "too long to generate": (*_GENERATE, _generate(prompt=LONG, **_UNCUT)),
    "too long to chat": (*_CHAT, chat(messages=[{"role": "user", "content": LONG}], **_UNCUT)),
    "vectors": (*_EMBED, _embed(input=["hello", "you"])),
    "no text for vectors": (*_EMBED, {"model": "vectors"}),
    "vectors of a long text": (*_EMBED, _embed(input=PAGE, truncate=False, options={**WIDE, "num_batch": 8192})),
    "vectors of a model of text": (*_EMBED, _embed(model="tiny")),
    "too long for vectors": (*_EMBED, _embed(input=LONG, truncate=False)),
    "text of a model of vectors": (*_CHAT, chat(model="vectors")),
    "generated text of a model of vectors": (*_GENERATE, _generate(model="vectors")),
}
# Patterns end the runner or the whole server of 0.24, which answers nothing then.
_PATTERNS = (r"^\d{6}$", r"^(?=a)b$", r"^\w+$", "^(?:a|b)$")
ONLY: dict[str, dict[str, tuple[str, str, Any]]] = {
    "0.33": {
        "too long and not to be shifted": (*_GENERATE, _generate(prompt=LONG, shift=False, options=FEW, stream=False)),
        "vectors of a text longer than a batch": (*_EMBED, _embed(input=PAGE, truncate=False, options=WIDE)),
        **{
            f"pattern {pattern}": (*_CHAT, chat(format={"type": "string", "pattern": pattern}, options=FEW))
            for pattern in _PATTERNS
        },
    }
}


def exchanges(line: str) -> dict[str, tuple[str, str, Any]]:
    """All requests that are asked of a server of this line, by name."""
    return EXCHANGES | ONLY.get(line, {})


def shape(value: Any) -> Any:
    """Keys and types of a JSON value."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return type(value).__name__


def outcome(answer: Answer) -> dict[str, Any]:
    """What is compared: the status, then the words of an error, or the shapes of the first and the last line."""
    found: dict[str, Any] = {"status": answer.status, "type": answer.type}
    if answer.status != 200:
        return found | {"error": _without_counts(answer.json()["error"])}
    lines = answer.lines() if answer.type == "application/x-ndjson" else [answer.json()]
    return found | {"lines": [shape(lines[0]), *map(shape, lines[-1:] if len(lines) > 1 else [])]}


def _without_counts(text: str) -> str:
    """The stand-in counts words, so its prompts have other lengths."""
    return re.sub(r'(?<=request \()\d+|(?<="n_prompt_tokens":)\d+', "0", text)


def recorded(line: str) -> dict[str, dict[str, Any]]:
    """The outcomes that a real server of this line had, by name."""
    found: dict[str, dict[str, Any]] = json.loads((RECORDED / f"ollama-{line}.json").read_text())["outcomes"]
    return found


def ask(server: Ollama, line: str, name: str) -> dict[str, Any]:
    return outcome(server.ask(*exchanges(line)[name]))
