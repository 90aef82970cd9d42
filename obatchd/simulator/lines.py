"""What differs between the two lines of Ollama's versions, as real servers of each were recorded (tests/recorded).

Up to 0.24 the engine is part of Ollama. Since 0.30 it is llama.cpp's ``llama-server`` beside it, whose error answers
Ollama passes on as they are: JSON inside the text of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from obatchd.simulator.answers import valid_schema

Refusal = tuple[int, str]  # the status and the words of an error
_LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
_CLASSES = ("\\d", "\\w", "\\s")  # in a pattern; the grammar maker of llama-server copies them, its parser refuses
_BATCH = 2048  # tokens of a model of vectors, where a request says nothing
_NO_SHIFT = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the "
    "context length in settings, or use a model with a longer context length"
)


@dataclass(frozen=True)
class Line:
    """One line of versions."""

    version: str
    engine: str  # what a runner is called in errors and in the log
    separate: bool  # the engine is llama-server

    @property
    def starting(self) -> str:
        """The log line when a runner is started."""
        return f"starting {self.engine.removeprefix('llama ')}"

    def source(self, old: str, new: str) -> str:
        """Where in Ollama's source a log line comes from."""
        return new if self.separate else old

    def load_options(self, options: dict[str, Any], *, shift: bool) -> dict[str, Any]:
        """What makes a model be loaded again when it differs: of a request's options, and whether its context may
        shift, which llama-server has as a flag."""
        chosen = {name: options[name] for name in _LOAD_OPTIONS if name in options}
        return {**chosen, "shift": shift} if self.separate else chosen

    def too_long(self, tokens: int, limit: int, *, truncate: bool, shift: bool) -> Refusal | None:
        """To a prompt longer than the context; ``None`` where it is cut."""
        if truncate:
            return (400, _NO_SHIFT) if self.separate and not shift else None
        if not self.separate:
            return 400, "the input length exceeds the context length"
        words = f"request ({tokens} tokens) exceeds the available context size ({limit} tokens), try increasing it"
        return _passed_on(words, "exceed_context_size_error", n_prompt_tokens=tokens, n_ctx=limit)

    def no_grammar(self, schema: dict[str, Any]) -> Refusal | None:
        """To a schema that cannot be made into a grammar: of an unknown type, or, by llama-server, with a class of
        characters in a pattern. 0.24 would crash of that, which the stand-in does not."""
        if not valid_schema(schema):
            if not self.separate:
                return 500, "invalid JSON schema in format"
            shown = msgspec.json.encode(schema).decode()
            words = f"JSON schema conversion failed:\nUnrecognized schema: {shown}"
            return _passed_on(f"Field 'json_schema': \"json_schema\": {words}", "invalid_request_error")
        if self.separate and any(part in pattern for pattern in _patterns(schema) for part in _CLASSES):
            return _passed_on("Failed to initialize samplers: failed to parse grammar", "invalid_request_error")
        return None

    def longest_text(self, options: dict[str, Any]) -> int:
        """Tokens of a text for vectors that is not to be cut: the context, and for llama-server one batch."""
        context = int(options["num_ctx"])
        return min(context, int(options.get("num_batch", _BATCH))) if self.separate else context

    def no_vectors(self, capabilities: list[str]) -> Refusal | None:
        """To a request for vectors, where the model cannot make them."""
        if not self.separate or "embedding" in capabilities:
            return None
        return 501, "This server does not support embeddings. Start it with `--embeddings`"


LINES = {
    "0.24": Line("0.24.0-simulated", "llama runner", separate=False),
    "0.33": Line("0.33.2-simulated", "llama-server", separate=True),
}


def _passed_on(message: str, kind: str, **more: int) -> Refusal:
    error = {"code": 400, "message": message, "type": kind, **more}
    return 400, msgspec.json.encode({"error": error}).decode()


def _patterns(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield str(schema.get("pattern", ""))
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _patterns(part)
