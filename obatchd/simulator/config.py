"""How the stand-in server behaves, and which faults it has.

The file named by ``OBATCHD_SIMULATOR_CONFIG`` (JSON or TOML) comes first, the JSON text in ``OBATCHD_SIMULATOR``
overrides it key by key; without either it takes about the time of a GPU. ``POST /simulator/faults`` replaces the faults
of a running server.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from obatchd.errors import ConfigError
from obatchd.simulator.timeline import Script

Refusal = tuple[int, str]  # the status and the words of an error
_LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
_CLASSES = ("\\d", "\\w", "\\s")  # in a pattern; the grammar maker of llama-server copies them, its parser refuses
_BATCH = 2048  # tokens of a model of vectors, where a request says nothing
_NO_SHIFT = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the "
    "context length in settings, or use a model with a longer context length"
)

FaultKind = Literal[
    "crash",  # serve ends as by a Go panic; its runner stays
    "runner_crash",  # the runner is killed: everything in flight fails together
    "cuda_error",  # the same, and the runner says why
    "load_failure",  # the runner ends while it loads the model
    "hang",  # no more tokens: for `seconds`, or for ever with the slot kept even when the client goes away
    "status",  # answers `status` with the error `message`
    "busy",  # 503, as if too many requests waited for a load
    "slow",  # takes `factor` times as long
    "cut",  # the stream ends without its last line
    "not_done",  # the last line says done:false and has no reason
    "no_reason",  # the last line is done without a reason
    "empty",  # no text at all, done_reason length
    "no_format",  # answers in text although JSON was asked for
    "think_tags",  # reasons in tags in its text; without the first one where the model's template ends with it
    "think_open",  # mentions an opening tag in its text
    "leak",  # the slot is never free again, although the answer is whole
    "cpu",  # the model is loaded beside the VRAM and answers `factor` times as slowly
]


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """One fault and when it strikes. Every condition that is given must hold.

    Requests are counted from 1, per fault, among those that match ``marker`` and ``model``; loads are counted for
    ``load_failure`` and ``cpu``.
    """

    kind: FaultKind
    marker: str | None = None  # only prompts that contain this text
    model: str | None = None  # only requests for this model
    schema: bool | None = None  # only requests for an answer that follows a JSON Schema, or only others
    at: int | None = None  # only the at-th matching request
    every: int | None = None  # every k-th matching request
    probability: float | None = None
    count: int | None = None  # at most this often
    after_tokens: int = 0  # tokens of the answer sent before it strikes
    seconds: float | None = None
    factor: float = 10.0
    status: int = 500
    message: str = "simulated fault"


class FaultBox:
    """The faults of one server, with their counters."""

    def __init__(self, faults: list[Fault], seed: int = 0) -> None:
        self.faults = faults
        self.fired: dict[str, int] = {}
        self._seen = [0] * len(faults)
        self._struck = [0] * len(faults)
        self._random = random.Random(seed)

    def strike(self, kinds: frozenset[str], model: str, prompt: str = "", *, schema: bool = False) -> Fault | None:
        """The first fault of ``kinds`` that strikes this request or load, counted."""
        chosen: Fault | None = None
        for place, fault in enumerate(self.faults):
            if fault.kind in kinds and self._strikes(place, fault, model, prompt, schema) and chosen is None:
                chosen = fault
                self._struck[place] += 1
                self.fired[fault.kind] = self.fired.get(fault.kind, 0) + 1
        return chosen

    def _strikes(self, place: int, fault: Fault, model: str, prompt: str, schema: bool) -> bool:
        if fault.model not in (None, model, model.removesuffix(":latest")):
            return False
        if fault.schema not in (None, schema):
            return False
        if fault.marker is not None and fault.marker not in prompt:
            return False
        self._seen[place] += 1
        return (
            (fault.count is None or self._struck[place] < fault.count)
            and (fault.at is None or self._seen[place] == fault.at)
            and (fault.every is None or self._seen[place] % fault.every == 0)
            and (fault.probability is None or self._random.random() < fault.probability)
        )


class Distribution(msgspec.Struct, forbid_unknown_fields=True):
    """Tokens or seconds, drawn per prompt: the same prompt draws the same value wherever it runs."""

    kind: Literal["fixed", "uniform", "lognormal"] = "fixed"
    value: float = 0.0  # fixed
    low: float = 0.0  # uniform
    high: float = 0.0
    mean: float = 0.0  # lognormal: the mean itself, not of the logarithm
    sigma: float = 0.5  # lognormal: standard deviation of the logarithm
    tokens: float | None = None  # another name of `value`, for answers

    def draw(self, seed: str) -> float:
        if self.kind == "fixed":
            return self.value if self.tokens is None else self.tokens
        source = random.Random(seed)
        if self.kind == "uniform":
            return source.uniform(self.low, self.high)
        # The mean of a lognormal is exp(mu + sigma² / 2); normalvariate is drawn at mu = 0 so that mean may be 0.
        return self.mean * source.lognormvariate(-(self.sigma**2) / 2, self.sigma)


class Throughput(msgspec.Struct, forbid_unknown_fields=True):
    """Answer tokens per second of all slots together, by how many of them are busy."""

    points: list[tuple[int, float]]  # busy slots, tokens per second; ascending
    noise: float = 0.0  # standard deviation of the time of one answer, as a share of it

    def total(self, busy: int) -> float:
        """Tokens per second of all: on a line between two points, in proportion before the first."""
        before, speed = 0, 0.0
        for slots, tokens_per_s in self.points:
            if busy <= slots:
                return speed + (tokens_per_s - speed) * (busy - before) / (slots - before)
            before, speed = slots, tokens_per_s
        return speed

    def of_one(self, busy: int, seed: str) -> float:
        """Tokens per second of one answer beside ``busy - 1`` others; the same ``seed`` has the same noise."""
        share = self.total(busy) / max(1, busy)
        return share / max(0.2, random.Random(seed).gauss(1.0, self.noise)) if self.noise else share


class ModelSpec(msgspec.Struct, forbid_unknown_fields=True):
    """A model of the stand-in. Without a ``digest`` it is the digest of the name."""

    name: str
    digest: str = ""
    size_bytes: int = 1_000_000
    family: str = "llama"
    parameter_size: str = "484K"
    quantization: str = "F16"
    capabilities: list[str] = msgspec.field(default_factory=lambda: ["completion"])
    context_length: int = 131072  # tokens the model was trained for
    vram_bytes: int = 2 * 1024**3  # weights alone
    kv_bytes_per_token: int = 32 * 1024  # of every slot's context
    template: str = "{{ .Prompt }}"
    system: str = ""
    parameters: dict[str, Any] = {}
    parent_model: str = ""
    modified_at: str = "2026-01-01T00:00:00.000000Z"


@dataclass(frozen=True)
class Line:
    """What differs between the two lines of Ollama's versions, as real servers of each were recorded (tests/recorded).

    Up to 0.24 the engine is part of Ollama. Since 0.30 it is llama.cpp's ``llama-server`` beside it, whose error
    answers Ollama passes on as they are: JSON inside the text of its own.
    """

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

    def no_grammar(self, schema: dict[str, Any], *, valid: bool) -> Refusal | None:
        """To a schema that cannot be made into a grammar: not a ``valid`` one, or, by llama-server, one with a class of
        characters in a pattern; 0.24 does not refuse that but crashes (:mod:`obatchd.simulator.grammar`)."""
        if not valid:
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


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """Everything that can be chosen. Rates and times of 0 mean "at once"."""

    load_s: float = 0.0
    tokens_per_s: float = 0.0  # of every slot, however many are busy
    prompt_tokens_per_s: float = 0.0
    throughput: Throughput | None = None  # of all slots together; then `tokens_per_s` does not count
    chunk_s: float = 0.05  # least time between two pieces of a stream
    answer: Distribution = msgspec.field(default_factory=lambda: Distribution(tokens=20))
    service_s: Distribution | None = None  # whole time in a slot; then the rates above do not count
    thinking_tokens: int = 8
    models: list[ModelSpec] = msgspec.field(default_factory=lambda: [ModelSpec("tiny"), ModelSpec("simulated")])
    missing: str = "missing*"  # names that cannot be pulled
    pull_s: float = 0.0
    pull_bytes: int = 1_000_000
    gpu_memory_bytes: int = 80 * 1024**3
    gpu_found: bool = True  # false: discovery finds no GPU, whatever CUDA_VISIBLE_DEVICES says
    discovery_s: float = 0.0  # connections are accepted, nothing is answered
    start_failure: str = ""  # serve ends at once with this error and exit status 1
    faults: list[Fault] = []
    gpus: Script = {}  # events of the stand-in GPUs, by index; read by the probe, not by servers
    seed: int = 0  # of the faults' probabilities
    ollama: Literal["0.24", "0.33"] = "0.24"  # the line of versions that it stands for

    @property
    def line(self) -> Line:
        return LINES[self.ollama]


# Where nobody chose: about what a GPU does with a model of 30 billion parameters, so that people see it work.
LIFELIKE = Config(
    load_s=2.0, tokens_per_s=40.0, prompt_tokens_per_s=4000.0, answer=Distribution("lognormal", mean=60.0, sigma=0.5)
)


def load(environment: Mapping[str, str]) -> Config:
    """The configuration that ``environment`` asks for, :data:`LIFELIKE` where it asks for none.

    Raises:
        ConfigError: the file cannot be read, or a key or value is not known.
    """
    merged: dict[str, Any] = {}
    if not environment.get("OBATCHD_SIMULATOR_CONFIG") and not environment.get("OBATCHD_SIMULATOR"):
        return LIFELIKE
    try:
        if name := environment.get("OBATCHD_SIMULATOR_CONFIG"):
            data = Path(name).read_bytes()
            merged.update(msgspec.toml.decode(data) if name.endswith(".toml") else msgspec.json.decode(data))
        if text := environment.get("OBATCHD_SIMULATOR"):
            merged.update(msgspec.json.decode(text))
        return msgspec.convert(merged, Config)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The simulator cannot be configured: {error}. Correct OBATCHD_SIMULATOR*.") from error
