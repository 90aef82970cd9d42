"""How a model shall answer: options, limits, formats, reasoning and tools, whatever API their names come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from obatchd.jobs.formats.reader.fields import IF_DATA, OPTION, Fields, parsed, shown
from obatchd.jobs.formats.reader.tools import tool_choice, tools
from obatchd.jobs.model import PRIORITY_CLASS, RequestRefused

THINK_LEVELS = ("auto", "low", "medium", "high", "max")
_EFFORTS: dict[str, bool | str] = {
    "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max",
}  # fmt: skip
_SWITCHED: dict[Any, Any] = {"enabled": True, "adaptive": True, "disabled": False}
MOST_CHOICES = 16  # answers of one request
# Ollama's options (ollama api/types.go), with those of versions up to 0.12.
_WHOLE = frozenset(
    {"num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch", "num_gpu", "main_gpu",
     "num_thread", "draft_num_predict", "mirostat"}
)  # fmt: skip
_NUMBERS = frozenset(
    {"temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "tfs_z",
     "mirostat_eta", "mirostat_tau"}
)  # fmt: skip
_SWITCHES = frozenset(
    {"use_mmap", "use_mlock", "numa", "low_vram", "penalize_newline", "f16_kv", "logits_all", "vocab_only"}
)
_COUNTED = _WHOLE | _NUMBERS
_OPTIONS = _COUNTED | _SWITCHES | {"stop"}
_LIMITS = ("max_response_tokens", "max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens",
           "n_predict")  # fmt: skip
_ALIASES: dict[str, str] = {
    **{name: "num_predict" for name in _LIMITS}, "repetition_penalty": "repeat_penalty", "stop_sequences": "stop",
    "random_seed": "seed",
}  # fmt: skip
_NO_TEMPLATE = "every prompt goes through the template of its model"
# What /api/chat cannot do, with the kinds of values that tell it from data.
_IMPOSSIBLE: dict[str, tuple[tuple[type, ...], str]] = {
    "stream": ((bool,), "a batch has no stream"),
    "raw": ((bool,), _NO_TEMPLATE),
    "template": ((str,), _NO_TEMPLATE),
    "suffix": ((str,), "nothing can be filled in before a text"),
    "context": ((list,), "give the earlier conversation as messages"),
    "echo": ((bool,), "the prompt is not part of the answer"),
    "logprobs": ((bool, int), "probabilities are not recorded"),
    "top_logprobs": ((int,), "probabilities are not recorded"),
    "logit_bias": ((dict,), "Ollama has no such option"),
    "functions": ((list,), "give them as tools"),
    "function_call": ((str, dict), "no model can be made to call a function"),
    "audio": ((dict,), "answers are text"),
    "best_of": ((), "best_of must be 1"),
}
# Keywords without any of which an object is no JSON Schema.
_KEYWORDS = frozenset(
    {"type", "properties", "items", "prefixItems", "required", "enum", "const", "anyOf", "allOf", "oneOf", "not", "if",
     "additionalProperties", "patternProperties", "definitions", "pattern", "contains", "minimum", "maximum",
     "minLength", "maxLength", "minItems", "maxItems", "minProperties", "dependentRequired"}
)  # fmt: skip
_OPENAIS = ("json_schema", "json_object")
_CONTEXT_LIMIT = 2**24  # tokens; no model comes near
_HOTTEST = 2  # the highest temperature that any API takes; a patient's is higher


def settings(fields: Fields) -> dict[str, Any]:
    """The settings of a request, as fields of :class:`obatchd.jobs.formats.request.Request`.

    Raises RequestRefused where one of them is of the wrong kind.
    """
    found: dict[str, Any] = {}
    if _READERS.keys().isdisjoint(fields.raw):
        return found
    for name in sorted(fields.raw.keys() & _READERS.keys(), key=_RANK.__getitem__):
        target, read = _READERS[name]
        value = read(fields, name)
        if target == "options" and value is not None:
            found["options"] = value | found.get("options", {})
        elif value is not None:
            found.setdefault(target, value)
    if "context_length" not in found and "num_ctx" in found.get("options", ()):
        found["context_length"] = _tokens("options.num_ctx", found["options"]["num_ctx"])
    return found


def setting_in(fields: Fields, name: str) -> tuple[str, Any]:
    """The setting that the field ``name`` is, and its value; None where the field is data, or null.

    Raises RequestRefused where it is of the wrong kind.
    """
    target, read = _READERS[name]
    return target, read(fields, name)


def _text(fields: Fields, name: str) -> str | None:
    value = fields.take(name)
    if value is not None and not isinstance(value, str):
        raise fields.wrong(name, "a text", value)
    return value


def _texts(fields: Fields, name: str) -> list[str] | None:
    given = fields.take(name)
    texts: list[str] | None = [given] if isinstance(given, str) else given
    if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise fields.wrong(name, "a list of texts", given)
    return texts


def _system(fields: Fields, name: str) -> str | None:
    """A system message: a text, or the parts of one."""
    value = fields.peek(name)
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        fields.take(name)
        return "\n".join(part["text"] for part in value)
    return _text(fields, name)


def _priority(fields: Fields, name: str) -> str | None:
    value = fields.take(name)
    if value is not None and (not isinstance(value, str) or value not in PRIORITY_CLASS):
        raise fields.wrong(name, "one of low, normal, high", value)
    priority: str | None = value
    return priority


def _limit(fields: Fields, name: str) -> int | None:
    value = fields.take(name)
    return None if value is None else _tokens(f"the token limit {name}", value)


def _tokens(name: str, value: Any) -> int:
    count = value if type(value) is int else _whole(value)
    if count is None or not 0 < count < _CONTEXT_LIMIT:
        raise RequestRefused("wrong_type", f"{name} must be a number of tokens, not {shown(value)}")
    return count


def _number(value: Any) -> int | float | None:
    """A number, also one in a text; None where it is none."""
    number = parsed(value.strip()) if isinstance(value, str) else value
    if isinstance(number, float):
        return number if math.isfinite(number) else None
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _whole(value: Any) -> int | None:
    """A whole number; programs for data frames write 100 as 100.0."""
    number = _number(value)
    return None if number is None or number != int(number) else int(number)


# Options.


def _options(fields: Fields, name: str) -> dict[str, Any] | None:
    given = fields.take(name)
    options = parsed(given) if isinstance(given, str) else given
    if options is None:
        return None
    if not isinstance(options, dict):
        raise fields.wrong(name, "an object with Ollama's options", given)
    found = {}
    for key, value in options.items():
        if value is not None:
            own = str(_ALIASES.get(key, key))
            found[own] = _option(fields, f"{name}.{key}", own, value)
            if own not in _OPTIONS:
                fields.odd += (OPTION + key,)
                fields.notes.append(f"{name}.{key} is no option that Ollama is known to have")
    return found


def _parameters(fields: Fields, name: str) -> dict[str, Any] | None:
    """The object in which Hugging Face and vLLM have the options, where it is nothing else."""
    value = fields.peek(name)
    if isinstance(value, dict) and value and value.keys() <= _OPTIONS | _ALIASES.keys():
        return _options(fields, name)
    return None


def _beside(fields: Fields, name: str) -> dict[str, Any] | None:
    """An option that stands beside the prompt."""
    given = fields.take(name)
    if given is None:
        return None
    own = _ALIASES.get(name, name)
    value = _option(fields, name, own, given)
    if name == "temperature" and not fields.strict and not 0 <= value <= _HOTTEST:
        raise fields.wrong(name, f"from 0 to {_HOTTEST}", given)
    if not fields.strict:  # bodies of calls have them
        fields.odd += (name,)
    return {own: value}


def _option(fields: Fields, name: str, own: str, value: Any) -> Any:
    read, must_be = value, ""
    if type(value) is int and own in _COUNTED:
        return value
    if own in _WHOLE:
        read, must_be = _whole(value), "a whole number"
    elif own in _NUMBERS:
        read, must_be = _number(value), "a number"
    elif own == "stop":
        read, must_be = ([value] if isinstance(value, str) else value), "a text or a list of texts"
        if not isinstance(read, list) or not all(isinstance(text, str) for text in read):
            read = None
    if read is None:
        raise fields.wrong(name, must_be, value)
    return read


# The form of the answer.


def _format(fields: Fields, name: str) -> str | dict[str, Any] | None:
    """Text (empty), "json" or a JSON Schema, in any of the shapes that APIs give it."""
    given = fields.take(name)
    if given is None:
        return None
    named = {"": "", "text": "", "json": "json", "json_object": "json"}
    kind = given.strip().lower() if isinstance(given, str) else ""
    if isinstance(given, str) and kind in named:
        return named[kind]
    wanted = parsed(given) if isinstance(given, str) else given
    if isinstance(wanted, dict):
        shape = wanted.get("type")
        if shape == "text":
            return ""
        inner = wanted.get("json_schema", wanted)
        schema = inner.get("schema", inner if shape == "json_schema" else None) if isinstance(inner, dict) else None
        if isinstance(schema, dict) and schema is not wanted and (shape in _OPENAIS or not _is_schema(wanted)):
            return schema
        if shape == "json_object":
            return "json"
        if shape not in _OPENAIS and (not wanted or _is_schema(wanted)):
            return wanted
    raise fields.wrong(name, '"json" or a JSON Schema', given)


def _is_schema(wanted: dict[str, Any]) -> bool:
    return any(name in _KEYWORDS or name.startswith("$") for name in wanted)


def _think(fields: Fields, name: str) -> bool | str | None:
    """Whether the model reasons, and how much."""
    value = fields.take(name)
    read = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    if read is not None and not isinstance(read, bool) and (not isinstance(read, str) or read not in THINK_LEVELS):
        raise fields.wrong(name, f"true, false or one of {', '.join(THINK_LEVELS)}", value)
    thinks: bool | str | None = read
    return thinks


def _effort(fields: Fields, name: str) -> bool | str | None:
    """The same in the words of other APIs: ``reasoning_effort``, ``reasoning.effort``, ``thinking.type``,
    ``enable_thinking``, ``chat_template_kwargs.enable_thinking``. Under their names data stands, too.
    """
    value = fields.peek(name)
    if isinstance(value, dict):
        value = next((value[key] for key in ("effort", "enable_thinking", "type") if key in value), None)
    if isinstance(value, str):
        value = _SWITCHED.get(value, _EFFORTS.get(value, value))
    if value is None:
        return None
    if isinstance(value, bool) or (isinstance(value, str) and value in THINK_LEVELS):
        fields.take(name)
        return value
    if name != "reasoning_effort":
        return None
    raise RequestRefused("wrong_type", f"{name} {shown(value)} is none of {', '.join(_EFFORTS)}")


def _impossible(fields: Fields, name: str) -> None:
    """Something that Ollama cannot do; in a plain line only where the value shows that it is meant, and not data."""
    value = fields.peek(name)
    kinds, why = _IMPOSSIBLE[name]
    meant = fields.strict or (isinstance(value, kinds) if kinds else "messages" in fields.raw and bool(_whole(value)))
    if value and meant and (kinds or value != 1):
        fields.cannot(name, why)


def _answers(fields: Fields, name: str) -> int | None:
    """How many answers to one prompt are asked for; in a plain line only where it is the body of a call, or it is data.

    Where ``n`` stands beside a prompt and not beside messages, a note says how it is taken.
    """
    value = fields.peek(name)
    is_chat = fields.strict or "messages" in fields.raw
    count = None if isinstance(value, bool) else _whole(value)
    is_count = count is not None and 0 < count <= MOST_CHOICES
    if is_chat and not is_count and (value if fields.strict else count):
        fields.cannot(name, f"it must be a whole number from 1 to {MOST_CHOICES}")
    if not is_count or (count == 1 and not fields.strict):
        return None
    if not is_chat:
        if not {"model", "prompt"} <= fields.raw.keys():
            return None
        fields.odd += (name,)
        fields.notes.append(f'n is taken for a setting: there are {count} answers, in "choices"{IF_DATA}')
    fields.take(name)
    return count


_Reader = Callable[[Fields, str], Any]


def _noted(read: _Reader) -> _Reader:
    """The reader of a setting under a name of another API, which in a plain line may be the name of data."""

    def noted(fields: Fields, name: str) -> Any:
        value = read(fields, name)
        fields.odd += () if value is None else (name,)
        return value

    return noted


# By name of the field: the setting, and how it is read. Of several names of a setting the first one given counts.
_READERS: dict[str, tuple[str, _Reader]] = {
    "model": ("model", _text),
    "system": ("system", _system),
    **dict.fromkeys(("system_prompt", "system_message"), ("system", _noted(_system))),
    "options": ("options", _options),
    **dict.fromkeys(("parameters", "sampling_params", "generation_config"), ("options", _noted(_parameters))),
    **dict.fromkeys(sorted((_WHOLE | _NUMBERS | _ALIASES.keys() | {"stop"}) - {*_LIMITS}), ("options", _beside)),
    "max_response_tokens": ("max_response_tokens", _limit),
    **dict.fromkeys(_LIMITS[1:], ("max_response_tokens", _noted(_limit))),
    "context_length": ("context_length", _limit),
    "format": ("format", _format),
    **dict.fromkeys(("response_format", "guided_json"), ("format", _noted(_format))),
    "think": ("think", _think),
    **dict.fromkeys(
        ("reasoning_effort", "reasoning", "thinking", "enable_thinking", "chat_template_kwargs"),
        ("think", _noted(_effort)),
    ),
    "tools": ("tools", tools),
    "tool_choice": ("", tool_choice),
    "priority": ("priority", _priority),
    "keep_alive": ("keep_alive", Fields.take),
    "n": ("n", _answers),
    **{name: (name, _texts) for name in ("in_source", "urls", "files")},
    **dict.fromkeys(_IMPOSSIBLE, ("", _impossible)),
}  # fmt: skip
_RANK = {name: rank for rank, name in enumerate(_READERS)}
KNOWN = frozenset(_READERS)
SETTINGS = KNOWN - _IMPOSSIBLE.keys()
OPTIONS = _OPTIONS
