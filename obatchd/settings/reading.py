"""Reads settings: defaults, then the file, then ``OBATCHD_…`` variables, then flags; and explains what is wrong.

Every problem is reported at once, with its source, its key, the reason and the nearest valid name. Values are never
repeated in a message, so a token cannot end up in a log.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from obatchd.errors import ConfigError
from obatchd.settings.base import Reload, Section, time_unit
from obatchd.settings.settings import Settings

_ENVIRONMENT_PREFIX = "OBATCHD_"
_ENVIRONMENT_OTHERS = ("OBATCHD_SIMULATOR", "OBATCHD_TEST_", "OBATCHD_CRASH_AT", "OBATCHD_CACHE")
_SHARED_SPOOL = "OBATCH_SPOOL"  # which obatchctl obeys; it goes after every other way of naming the daemon's spool
_KINDS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
_PLACE = re.compile(r"\(at (?:line (\d+), column \d+|end of document)\)$")
_ADDRESS = re.compile(r"(https?://)?(\[[0-9a-fA-F:]+\]|[\w.-]+)[:;,]\d+$")  # as it stands without quotes
_LIMITS = {  # words of JSON Schema
    "exclusiveMinimum": " greater than {}",
    "minimum": " from {}",
    "maximum": " to {}",
    "minLength": " that is not empty",
    "maxLength": ", {} characters at most",
}
_Model = TypeVar("_Model", bound=Section)


class Leaf(NamedTuple):
    """One setting of the declaration."""

    model: type[BaseModel]
    section: str  # "" at the top level
    name: str
    field: FieldInfo

    @property
    def key(self) -> str:
        """The dotted name, e.g. ``servers.slots``."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return _ENVIRONMENT_PREFIX + self.key.upper().replace(".", "_")

    @property
    def reload(self) -> Reload:
        """The effect of a reload on a change."""
        return next((mark for mark in self.field.metadata if isinstance(mark, Reload)), Reload.RESTART)

    @property
    def type_text(self) -> str:
        """The type in plain words, e.g. ``"auto" or a whole number from 1 to 64``."""
        schema = self.model.model_json_schema()["properties"][self.name]
        if (unit := time_unit(self.name)) is not None:
            return f'{unit.words}{_limits(schema)}, or text such as "{unit.example}"'
        return _in_words(schema)


def section_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model behind a table of the configuration; ``None`` for a single setting."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def leaves() -> Iterator[Leaf]:
    """Every setting: those of the top level first, then table by table."""
    fields = Settings.model_fields
    yield from (Leaf(Settings, "", name, field) for name, field in fields.items() if not section_model(field))
    for section, outer in fields.items():
        if model := section_model(outer):
            yield from (Leaf(model, section, name, field) for name, field in model.model_fields.items())


def _in_words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_in_words(kind) for kind in schema["anyOf"] if kind != {"type": "null"})
    if "enum" in schema or "const" in schema:
        return " or ".join(f'"{value}"' for value in schema.get("enum", [schema.get("const")]))
    if "items" in schema:
        least = f" with {schema['minItems']} or more" if schema.get("minItems", 0) > 1 else ""
        most = f" with {schema['maxItems']} or fewer" if "maxItems" in schema else ""
        items = _in_words(schema["items"])
        return f"a list of {f'({items})' if ' or ' in items else items}{least}{most}"
    return _KINDS.get(schema.get("type", ""), "a table") + _limits(schema)


def _limits(schema: Mapping[str, Any]) -> str:
    return "".join(words.format(schema[limit]) for limit, words in _LIMITS.items() if limit in schema)


def changes(old: Settings, new: Settings) -> list[Leaf]:
    """The settings that differ."""
    return [leaf for leaf in leaves() if value_of(old, leaf) != value_of(new, leaf)]


def reloaded(old: Settings, new: Settings) -> Settings:
    """``new``, but with everything that needs a restart as it is in ``old``."""
    for leaf in changes(old, new):
        if leaf.reload is Reload.RESTART:
            kept = {leaf.name: value_of(old, leaf)}
            if leaf.section:
                kept = {leaf.section: getattr(new, leaf.section).model_copy(update=kept)}
            new = new.model_copy(update=kept)
    return new


def value_of(settings: Settings, leaf: Leaf) -> Any:
    """The value of one setting."""
    return getattr(getattr(settings, leaf.section) if leaf.section else settings, leaf.name)


def load(file: Path | None, *, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """Read the configuration: a TOML file, ``OBATCHD_…`` variables, and flags by dotted key, ``None`` if not given.

    Raises ConfigError, which lists every unreadable, unknown or wrong setting.
    """
    return load_with_origin(file, environ=environ, flags=flags)[0]


def load_with_origin(
    file: Path | None, *, environ: Mapping[str, str], flags: Mapping[str, Any]
) -> tuple[Settings, dict[str, str]]:
    """As :func:`load`, with where each setting that is not a default came from (file, variable or flag)."""
    data = read_toml(file) if file else {}
    if isinstance(data.get("gpus"), str | list):  # the short form, before a variable or flag sets another key of it
        data["gpus"] = {"use": data["gpus"]}
    origin = {leaf.key: str(file) for leaf in leaves() if leaf.name in _table_of(data, leaf)}
    problems: list[str] = []
    by_key = {leaf.key: leaf for leaf in leaves()}
    by_variable = {leaf.variable: leaf for leaf in leaves()} | {"OBATCHD_GPUS": by_key["gpus.use"]}
    for variable in sorted(environ):
        if not variable.startswith(_ENVIRONMENT_PREFIX) or variable.startswith(_ENVIRONMENT_OTHERS):
            continue
        leaf = by_variable.get(variable)
        if leaf is None:
            problems.append(f"{variable}: no such setting{nearest(variable, by_variable)}")
        else:
            _table_of(data, leaf)[leaf.name] = _environment_value(leaf, environ[variable])
            origin[leaf.key] = variable
    if environ.get(_SHARED_SPOOL) and "spool" not in data:
        data["spool"], origin["spool"] = environ[_SHARED_SPOOL], _SHARED_SPOOL
    for key, value in flags.items():
        if value is not None:
            _table_of(data, by_key[key])[by_key[key].name] = value
            origin[key] = "--" + key.replace("_", "-").replace(".", "-")
    settings, wrong = validate(data, origin, str(file) if file else "defaults", Settings)
    if settings is None or problems:
        raise ConfigError("\n".join(problems + wrong))
    return settings, {leaf.key: origin[leaf.key] for leaf in leaves() if leaf.key in origin}


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file as a mapping; raises ConfigError where it cannot be read or is not TOML."""
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {_toml_words(error, file)}") from None


def _toml_words(error: tomllib.TOMLDecodeError | UnicodeDecodeError, file: Path) -> str:
    """What is wrong with a file, in the words of those who write it; of its lines only names are repeated."""
    said = str(error)
    if isinstance(error, UnicodeDecodeError) or not (place := _PLACE.search(said)):
        return said
    lines = file.read_text("utf-8").rstrip().splitlines()
    line = lines[min(int(place[1] or len(lines)), len(lines)) - 1]
    name = line.partition("=")[0].strip()
    where = place[0].replace("end of document", "the end").replace("at line", "line")
    if said.startswith("Cannot overwrite a value"):
        return f"{name} is named twice {where}; remove one"
    if said.startswith("Cannot declare"):
        return f"the table {name} is there twice {where}; put what is below the second one below the first"
    if "=" in line and _ADDRESS.match(name):
        return f'put the address in quotes: "{name}" {where}'
    return said


def _table_of(data: dict[str, Any], leaf: Leaf) -> dict[str, Any]:
    """The table in ``data`` that a setting belongs to."""
    table = data.setdefault(leaf.section, {}) if leaf.section else data
    return table if isinstance(table, dict) else {}  # the file has something else there, which validation reports


def _environment_value(leaf: Leaf, text: str) -> Any:
    """A TOML value where the setting is not plain text; text that is not TOML stays text."""
    if leaf.field.annotation is str:
        return text
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return document["value"] if len(document) == 1 else text


def validate(
    data: dict[str, Any], origin: Mapping[str, str], source: str, model: type[_Model]
) -> tuple[_Model | None, list[str]]:
    """The checked table, or None and its faults: source, key and reason of each problem."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        found: dict[str, str] = {}
        for detail in error.errors(include_url=False, include_input=False, include_context=False):
            key, reason = _explain(detail["loc"], detail["type"], detail["msg"], model)
            begin = f"{key}."
            place = next((place for known, place in origin.items() if begin.startswith(f"{known}.")), source)
            found.setdefault(key, f"{place}: {key}: {reason}")
        return None, list(found.values())


def _explain(location: tuple[int | str, ...], kind: str, message: str, model: type[BaseModel]) -> tuple[str, str]:
    """The dotted key and the reason of one pydantic error; the members of a union collapse into their setting."""
    if not location:
        return ", ".join(model.model_fields), message.removeprefix("Value error, ")
    for depth, part in enumerate(location):
        key = ".".join(map(str, location[: depth + 1]))
        field = model.model_fields.get(str(part))
        if field is None:
            return key, "no such setting" + _nearest_setting(key, list(model.model_fields))
        if inner := section_model(field):
            model = inner
        elif kind == "value_error":
            return key, message.removeprefix("Value error, ")
        elif depth + 1 < len(location) and get_origin(field.annotation) in (list, dict):
            return _explain_item(location, depth + 2, kind, get_args(field.annotation)[-1])
        else:
            return key, "must be " + Leaf(model, "", str(part), field).type_text
    key = ".".join(map(str, location))
    if kind == "value_error":  # its settings do not go together
        return key, message.removeprefix("Value error, ")
    return key, f"must be a table, written as [{key}]"


def _explain_item(location: tuple[int | str, ...], end: int, kind: str, wanted: Any) -> tuple[str, str]:
    """The same of a value in a list or table of values; it lies at the first ``end`` parts of the location."""
    key = ".".join(map(str, location[:end]))
    if section_model(FieldInfo(annotation=wanted)) is None or end == len(location):
        return key, "must be " + _in_words(TypeAdapter(wanted).json_schema())
    name = str(location[end])
    key = f"{key}.{name}"
    if kind == "extra_forbidden":
        return key, "no such setting" + _nearest_setting(key, list(wanted.model_fields))
    if kind == "missing":
        return key, "is missing"
    return key, "must be " + Leaf(wanted, "", name, wanted.model_fields[name]).type_text


def _nearest_setting(key: str, siblings: list[str]) -> str:
    """A hint at a setting of the same table, else at one of the same name elsewhere."""
    section, dot, name = key.rpartition(".")
    if close := difflib.get_close_matches(name, siblings, 1):
        return f"; did you mean {section}{dot}{close[0]}?"
    by_name = {leaf.name: leaf.key for leaf in leaves()}
    if close := difflib.get_close_matches(name, by_name, 1, 0.75):
        return f"; did you mean {by_name[close[0]]}?"
    return "; see docs/settings.md"


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the valid name that looks most like ``name``."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]}?" if close else f"; valid are {', '.join(sorted(names)[:8])} …"
