"""Reading a generate or chat request: its fields, checked in the order in which Ollama checks them (v0.24)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from obatchd.simulator.config import Line, ModelSpec
from obatchd.simulator.scheduler import ServeError
from obatchd.simulator.wire import check_options, keep_alive_s

_MESSAGE_TOKENS = 4  # tokens that a chat template adds to every message
_THINK_LEVELS = ("high", "medium", "low", "max")


@dataclass
class Ask:
    """One generate or chat request, read and checked."""

    spec: ModelSpec
    model: str  # as the client wrote it
    chat: bool
    stream: bool
    prompt: str  # the text of the digest
    prompt_tokens: int
    system: str
    options: dict[str, Any]
    format: Any
    think: bool
    images: int
    tools: list[Any]
    truncate: bool
    shift: bool
    raw: bool
    keep_alive_s: float | None
    load_only: bool
    sent: str = ""  # all that the model reads
    arrived_s: float = field(default_factory=time.monotonic)

    def load_options(self, line: Line) -> dict[str, Any]:
        """What makes a model be loaded again when it differs."""
        return line.load_options(self.options, shift=self.shift)


def read_ask(asked: dict[str, Any], spec: ModelSpec, default_context: int, *, chat: bool) -> Ask:
    """Check a decoded request in the order in which Ollama does.

    Raises:
        ServeError: with its status and words.
    """
    model = asked.get("model", "")
    messages = asked.get("messages", [])
    think = _think(asked.get("think"), spec, model)
    keep = keep_alive_s(asked.get("keep_alive"))
    _check_capabilities(asked, spec, model, chat=chat)
    options = check_options({**spec.parameters, **asked.get("options", {})})
    options["num_ctx"] = min(options.get("num_ctx", default_context), spec.context_length)
    prompt, prompt_tokens = _chat_prompt(messages, spec) if chat else _prompt(asked, spec)
    return Ask(
        spec=spec,
        model=model,
        chat=chat,
        stream=asked.get("stream", True),
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        system=_system(messages) if chat else asked.get("system", spec.system),
        options=options,
        format=asked.get("format"),
        think=think,
        tools=asked.get("tools") or [],
        images=len(asked.get("images") or [])
        + sum(len(m.get("images") or []) for m in messages if isinstance(m, dict)),
        truncate=asked.get("truncate", True),
        shift=asked.get("shift", True),
        raw=asked.get("raw", False),
        keep_alive_s=keep,
        load_only=not messages if chat else not prompt,
        sent="\n".join(str(m.get("content", "")) for m in messages if isinstance(m, dict)) if chat else prompt,
    )


def _think(value: Any, spec: ModelSpec, model: str) -> bool:
    if isinstance(value, str) and value not in _THINK_LEVELS:
        raise ServeError(
            400, f'invalid think value: "{value}" (must be "high", "medium", "low", "max", true, or false)'
        )
    able = "thinking" in spec.capabilities
    if value and not able:
        raise ServeError(400, f'"{model}" does not support thinking')
    return able if value is None else bool(value)


def _check_capabilities(asked: dict[str, Any], spec: ModelSpec, model: str, *, chat: bool) -> None:
    if "completion" not in spec.capabilities:
        raise ServeError(400, f'"{model}" does not support {"chat" if chat else "generate"}')
    for key, capability in (("tools", "tools"), ("suffix", "insert")):
        if asked.get(key) and capability not in spec.capabilities:
            raise ServeError(400, f"registry.ollama.ai/library/{spec.name} does not support {capability}")


def _prompt(asked: dict[str, Any], spec: ModelSpec) -> tuple[str, int]:
    prompt = asked.get("prompt", "")
    if asked.get("raw"):
        return prompt, max(1, len(prompt.split()))
    system = asked.get("system", spec.system)
    return prompt, len(system.split()) + len(prompt.split()) + _MESSAGE_TOKENS


def _system(messages: list[Any]) -> str:
    """The client's demands on the model, before anything else."""
    first = messages[0] if messages else {}
    return str(first.get("content", "")) if isinstance(first, dict) and first.get("role") == "system" else ""


def _chat_prompt(messages: list[Any], spec: ModelSpec) -> tuple[str, int]:
    last, count = "", 0
    if messages and isinstance(messages[0], dict) and messages[0].get("role") != "system":
        count += len(spec.system.split())
    for message in messages:
        if not isinstance(message, dict):
            raise ServeError(
                400, "json: cannot unmarshal into Go struct field ChatRequest.messages of type api.Message"
            )
        content = str(message.get("content", ""))
        count += len(content.split()) + _MESSAGE_TOKENS
        if message.get("role") == "user":
            last = content
    return last, count
