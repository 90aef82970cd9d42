"""The data in an answer: JSON as it is, in a code fence, or with words around it."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple, NoReturn

from obatchd.prompts.reasoning import split_reasoning
from obatchd.words import counted, not_json

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


class Parsed(NamedTuple):
    """Data of an answer; ``problem`` says in plain words why there is no data, "" where there is, None where none is
    due."""

    data: Any = None
    problem: str | None = ""

    @property
    def found(self) -> bool:
        return self.problem == ""


def parse_answer(text: str) -> Parsed:
    """The object or array that ``text`` is, has in its one JSON code block, or has between words.

    A bare number, word or string is prose here, although it is valid JSON. Numbers that JSON does not know (NaN,
    Infinity) are no JSON, and numbers that are too large for us are none here.
    """
    text = split_reasoning(text)[0].strip()
    if not text:
        return Parsed(problem="it is empty")
    whole = _parse(text)
    if whole.found:
        return whole
    fenced = [parsed.data for block in _FENCE.findall(text) if (parsed := _parse(block)).found]
    if len(fenced) == 1:
        return Parsed(fenced[0])
    if fenced:
        return Parsed(problem=f"it has {counted(len(fenced), 'JSON block')}")
    between = _parse(text[text.find("{") : text.rfind("}") + 1])
    return between if between.found and isinstance(between.data, dict) else whole


def _parse(text: str) -> Parsed:
    try:
        data = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        return Parsed(problem="it is nested too deeply")
    except ValueError as error:
        return Parsed(problem=not_json(error))
    return Parsed(data) if isinstance(data, dict | list) else Parsed(problem="it is a bare value, no object or array")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is too large a number")
    return number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
