"""Answers that were asked for as JSON: checked by us whatever the server did, and against the source.

Some servers drop the grammar for some models in combination with reasoning (ollama #14645, #15260, mended in 0.31.2),
and an answer cut by its token limit is half a document: so only a text that validates here counts as an answer.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from obatchd.prompts.grammar import ServerFormat, server_format
from obatchd.words import not_json

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_FENCE = re.compile(r"\A```[\w-]*[ \t]*\r?\n(.*)```\Z", re.DOTALL)
_SCHEMAS_KEPT = 64
_CHECK_S = 1.0  # a pattern may take for ever on the wrong text, and schemas come from strangers
_REASON_CHARACTERS = 500
_encode = msgspec.json.Encoder(order="sorted").encode


class FormatError(Exception):
    """The ``format`` is neither "json" nor a JSON Schema that can be used."""


class Mismatch(Exception):
    """The text does not fit the format; says where and why."""


class Parsed(NamedTuple):
    """An answer that fits: its JSON as it stands in the text, and as values."""

    raw: msgspec.Raw
    data: Any


class AnswerFormat:
    """The form that an answer must have: ``"json"`` (any object or array) or a JSON Schema, else FormatError is raised.

    A schema is of the draft that its ``$schema`` names, else of draft 2020-12.
    """

    def __init__(self, wanted: str | dict[str, Any]) -> None:
        if wanted != "json" and not isinstance(wanted, dict):
            raise FormatError(f'format must be "json" or a JSON Schema, not {str(wanted)[:80]}')
        self._wanted = wanted
        self._validator = _validator(wanted) if isinstance(wanted, dict) else None

    @cached_property
    def for_server(self) -> ServerFormat:
        """What a server is asked for, which may be less than what is checked. Raises FormatError."""
        try:
            with _time_limit(_CHECK_S):
                return server_format(self._wanted)
        except TimeoutError:
            raise FormatError(f"reading the schema takes longer than {_CHECK_S:g} s: simplify it") from None

    def parse(self, text: str) -> Parsed:
        """The JSON in ``text``, which may stand in a fenced block.

        Raises Mismatch where there is none or it does not fit, FormatError where the schema turns out to be unusable.
        """
        text = text.strip()
        fenced = _FENCE.match(text)
        raw = (fenced[1] if fenced else text).strip().encode("utf-8", "surrogatepass")
        try:
            data = msgspec.json.decode(raw)
        except (ValueError, RecursionError) as error:
            raise Mismatch(not_json(error, raw)) from None
        if self._validator is None:
            if not isinstance(data, dict | list):
                raise Mismatch("it is neither a JSON object nor an array")
        else:
            self._check(self._validator, data)
        return Parsed(msgspec.Raw(raw), data)

    @staticmethod
    def _check(validator: Validator, data: Any) -> None:
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        try:
            with _time_limit(_CHECK_S):
                problem = best_match(validator.iter_errors(data))
        except TimeoutError:
            reason = f"checking an answer takes longer than {_CHECK_S:g} s: simplify its patterns"
            raise FormatError(reason) from None
        except Unresolvable as error:
            raise FormatError(f"the schema refers to {error.ref}, which is not in it") from None
        except re.error as error:
            raise FormatError(f"a pattern of the schema is no regular expression: {error}") from None
        except RecursionError:
            raise Mismatch("it is nested too deeply to be checked") from None
        if problem is not None:
            raise Mismatch(f"at {problem.json_path}: {problem.message[:_REASON_CHARACTERS]}")


@contextlib.contextmanager
def _time_limit(limit_s: float) -> Iterator[None]:
    """Raise TimeoutError in a body that takes longer. Only in a main thread, which is where workers check answers.

    Python's regular expressions look for signals while they search; nothing else would end them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(number: int, frame: object) -> None:
        raise TimeoutError

    earlier = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def answer_format(wanted: str | dict[str, Any]) -> AnswerFormat:
    """An :class:`AnswerFormat`, made once for each schema; raises as there."""
    return _kept(_encode(wanted))


@lru_cache(_SCHEMAS_KEPT)
def _kept(wanted: bytes) -> AnswerFormat:
    return AnswerFormat(msgspec.json.decode(wanted))


def _validator(schema: dict[str, Any]) -> Validator:
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except (SchemaError, RecursionError) as error:
        reason = getattr(error, "message", "it is nested too deeply")
        raise FormatError(f"it is no valid JSON Schema: {reason[:_REASON_CHARACTERS]}") from None
    # A registry of our own: without one the library would fetch whatever a stranger's $ref names.
    made: Validator = kind(schema, registry=REGISTRY)
    return made


# Values that must come from the source.


def ungrounded(data: Any, fields: Sequence[str], source: str) -> list[dict[str, Any]]:
    """The values of ``fields`` in ``data``, at any depth, that do not occur in ``source``: as field and value.

    A field is a name, or several joined by dots that must follow each other (``patient.mrn``). Capitals and the amount
    of white space do not count; a value is not found inside a longer word or number; null and "" need no source.

    Raises FormatError where it takes too long, as it may with very many values and a very long source.
    """
    wanted = [(field, tuple(field.split("."))) for field in fields]
    try:
        with _time_limit(_CHECK_S):
            haystack = _normal(source)
            return [
                {"field": field, "value": value}
                for path, value in _leaves(data)
                for field, names in wanted
                if path[-len(names) :] == names and not _occurs(value, haystack)
            ]
    except TimeoutError:
        reason = f"looking for the answer's values in the prompt takes longer than {_CHECK_S:g} s: name fewer fields"
        raise FormatError(reason) from None


def _leaves(data: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every plain value in the order of the document, with the names that lead to it. Deep ones must not overflow."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), data)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((*path, name), inner) for name, inner in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(path, inner) for inner in reversed(value)]
        else:
            yield path, value


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def _occurs(value: Any, haystack: str) -> bool:
    if value is None or isinstance(value, bool):
        return True
    spellings = {str(value)}
    if isinstance(value, float) and value.is_integer():
        spellings.add(str(int(value)))
    return any(_stands_in(_normal(spelling), haystack) for spelling in spellings)


def _stands_in(needle: str, haystack: str) -> bool:
    if not needle:
        return True
    at = haystack.find(needle)
    while at >= 0:
        before, after = haystack[at - 1 : at], haystack[at + len(needle) : at + len(needle) + 1]
        if not (before.isalnum() and needle[0].isalnum()) and not (after.isalnum() and needle[-1].isalnum()):
            return True
        at = haystack.find(needle, at + 1)
    return False
