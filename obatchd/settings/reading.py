"""Reads settings: defaults, then the file, then ``OBATCHD_…`` variables, then flags; and explains what is wrong.

Every problem is reported at once, with its source, its key, the reason and the nearest valid name. Values are never
repeated in a message, so a token cannot end up in a log.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from obatchd.errors import ConfigError
from obatchd.settings.base import Reload, Section
from obatchd.settings.settings import Settings

_ENVIRONMENT_PREFIX = "OBATCHD_"
_ENVIRONMENT_OTHERS = ("OBATCHD_SIMULATOR", "OBATCHD_TEST_", "OBATCHD_CRASH_AT", "OBATCHD_CACHE")
_Model = TypeVar("_Model", bound=Section)


class Leaf(NamedTuple):
    """One setting of the declaration."""

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


def section_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model behind a table of the configuration; ``None`` for a single setting."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def leaves() -> Iterator[Leaf]:
    """Every setting: those of the top level first, then table by table."""
    fields = Settings.model_fields
    yield from (Leaf("", name, field) for name, field in fields.items() if not section_model(field))
    for section, outer in fields.items():
        if model := section_model(outer):
            yield from (Leaf(section, name, field) for name, field in model.model_fields.items())


def type_text(kind: Any, limits: Iterable[object] = ()) -> str:
    """A type in plain words, e.g. ``"auto" or an integer from 1 to 64``."""
    if isinstance(kind, type) and not get_args(kind):
        name = {int: "an integer", float: "a number", str: "text", bool: "true or false"}.get(kind, "a table")
        return name + _limits_text(limits)
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join(f'"{value}"' for value in arguments)
    if get_origin(kind) is list:
        return f"a list of ({type_text(arguments[0])})"
    if get_origin(kind) is dict:
        return "a table"
    if hasattr(kind, "__metadata__"):
        nested: list[object] = []
        for item in kind.__metadata__:
            nested += item.metadata if isinstance(item, FieldInfo) else [item]
        return type_text(arguments[0], nested)
    return " or ".join(type_text(argument) for argument in arguments)


def _limits_text(limits: Iterable[object]) -> str:
    low = high = ""
    for limit in limits:
        if isinstance(limit, Gt):
            low = f" greater than {limit.gt}"
        elif isinstance(limit, Ge):
            low = f" from {limit.ge}"
        elif isinstance(limit, Le):
            high = f" to {limit.le}"
        elif isinstance(limit, MinLen):
            low = f" with at least {limit.min_length} elements"
    return low + high


def changes(old: Settings, new: Settings) -> list[Leaf]:
    """The settings that differ."""
    return [leaf for leaf in leaves() if value_of(old, leaf) != value_of(new, leaf)]


def reloaded(old: Settings, new: Settings) -> Settings:
    """``new``, but with everything that needs a restart as it is in ``old``."""
    kept = [leaf for leaf in changes(old, new) if leaf.reload is Reload.RESTART]
    tables: dict[str, Any] = {
        section: getattr(new, section).model_copy(
            update={leaf.name: value_of(old, leaf) for leaf in kept if leaf.section == section}
        )
        for section in {leaf.section for leaf in kept if leaf.section}
    }
    return new.model_copy(update={leaf.name: value_of(old, leaf) for leaf in kept if not leaf.section} | tables)


def value_of(settings: Settings, leaf: Leaf) -> Any:
    """The value of one setting."""
    return getattr(getattr(settings, leaf.section) if leaf.section else settings, leaf.name)


def load(file: Path | None, *, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """Read the configuration.

    Args:
        file: TOML file, or ``None`` for none.
        environ: the environment; ``OBATCHD_…`` variables count.
        flags: dotted key to value; ``None`` values count as not given.

    Raises:
        ConfigError: lists every unreadable, unknown or wrong setting.
    """
    return load_with_origin(file, environ=environ, flags=flags)[0]


def load_with_origin(
    file: Path | None, *, environ: Mapping[str, str], flags: Mapping[str, Any]
) -> tuple[Settings, dict[str, str]]:
    """As :func:`load`, with where each setting that is not a default came from (file, variable or flag)."""
    data: dict[str, Any] = {}
    origin: dict[str, str] = {}
    problems: list[str] = []
    if file is not None:
        data = read_toml(file)
        _expand_gpus(data)
        origin = {key: str(file) for key in _flat_keys(data)}
    by_key = {leaf.key: leaf for leaf in leaves()}
    by_variable = {leaf.variable: leaf for leaf in leaves()} | {"OBATCHD_GPUS": by_key["gpus.use"]}
    for variable in sorted(environ):
        if not variable.startswith(_ENVIRONMENT_PREFIX) or variable.startswith(_ENVIRONMENT_OTHERS):
            continue
        leaf = by_variable.get(variable)
        if leaf is None:
            problems.append(f"{variable}: no such setting{nearest(variable, by_variable)}")
        elif _put(data, leaf, _environment_value(leaf, environ[variable])):
            origin[leaf.key] = variable
    for key, value in flags.items():
        if value is not None and _put(data, by_key[key], value):
            origin[key] = "--" + key.replace("_", "-").replace(".", "-")
    settings, wrong = validate(data, origin, str(file) if file else "defaults", Settings)
    problems += wrong
    if settings is None or problems:
        raise ConfigError("\n".join(problems))
    return settings, {leaf.key: origin[leaf.key] for leaf in leaves() if leaf.key in origin}


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file as a mapping.

    Raises:
        ConfigError: it cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not valid TOML: {error}") from None


def _expand_gpus(data: dict[str, Any]) -> None:
    # The short form has to become a table before a variable or flag sets another key of it.
    if isinstance(data.get("gpus"), str | list):
        data["gpus"] = {"use": data["gpus"]}


def _flat_keys(data: Mapping[str, Any]) -> Iterator[str]:
    for name, value in data.items():
        field = Settings.model_fields.get(name)
        if isinstance(value, dict) and field and section_model(field):
            yield from (f"{name}.{inner}" for inner in value)
        else:
            yield name


def _put(data: dict[str, Any], leaf: Leaf, value: Any) -> bool:
    target = data.setdefault(leaf.section, {}) if leaf.section else data
    if isinstance(target, dict):  # else the file has something else there, which validation reports
        target[leaf.name] = value
        return True
    return False


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
            found.setdefault(key, reason)
        return None, [f"{_source_of(key, origin) or source}: {key}: {reason}" for key, reason in found.items()]


def _source_of(key: str, origin: Mapping[str, str]) -> str | None:
    parts = key.split(".")
    for count in range(len(parts), 0, -1):
        if found := origin.get(".".join(parts[:count])):
            return found
    return None


def _explain(
    location: tuple[int | str, ...], kind: str, message: str, model: type[BaseModel] = Settings
) -> tuple[str, str]:
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
            key = ".".join(map(str, location))
            table = get_args(field.annotation)[-1]
            if kind == "extra_forbidden" and issubclass(table, BaseModel):
                return key, "no such setting" + _nearest_setting(key, list(table.model_fields))
            return key, message[:1].lower() + message[1:]
        else:
            return key, "must be " + type_text(field.annotation, field.metadata)
    key = ".".join(map(str, location))
    return key, f"must be a table, written as [{key}]"


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
