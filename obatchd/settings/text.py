"""The settings as text for people: the commented file, the reference page, and the values in force."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import toml
from pydantic import TypeAdapter

from obatchd.settings.reading import Leaf, leaves, value_of
from obatchd.settings.settings import Settings

_WIDTH = 100
_HIDDEN = "(hidden)"
_NOTES = {
    "gpus": 'Instead of this table, gpus = "all" (or another value of use) may stand at the top of the file.',
    "ollama_instances": 'Written as a table:  [ollama_instances]  "10.0.0.5:11434" = -1',
}


def commented_toml() -> str:
    """The configuration file with every setting, its meaning and its default, all commented out."""
    lines = [
        "# Configuration of obatchd. Every setting is shown with its default; remove the # to change one.",
        "# A value here overrides the default; a variable (OBATCHD_SERVERS_SLOTS for slots of [servers])",
        "# overrides a value here; an option of obatchd overrides both.",
        "# obatchctl config check FILE   says what is wrong in a file;   obatchctl reload   has obatchd read it again:",
        "# settings marked live change at once, those marked next job for jobs accepted afterwards; a change of those",
        "# marked restart needs a restart of obatchd.",
        '# A time is a number in the unit that its name ends with, or a text with a unit: "90m", "2h", "3d", "1h30m".',
    ]
    for section, group in groupby(leaves(), key=lambda leaf: leaf.section):
        if section:
            lines += ["", "", f"[{section}]", *_comment(_section_text(section))]
        for leaf in group:
            meaning = _comment(f"{_meaning(leaf)} [{leaf.type_text}; {leaf.reload}]")
            lines += ["", *meaning, f"#{leaf.name} = {default_text(leaf)}"]
    return "\n".join(lines) + "\n"


def reference_page() -> str:
    """``docs/settings.md``: every setting with type, default, variable and the effect of a reload."""
    lines = [
        "# Settings",
        "",
        "Generated from the declarations in `obatchd/settings`. A value in the file given with `--config` overrides",
        "the default; an environment variable overrides the file; an option of obatchd overrides both. A list or",
        "table in a variable is written as a TOML value: `OBATCHD_GPUS_EXCLUDE='[3]'`. A change of a *live* setting",
        "holds at once after `obatchctl reload` (or SIGHUP), one of a *next job* setting for jobs accepted",
        "afterwards, because each job is done with the settings that held when it was accepted; one of a *restart*",
        "setting needs a restart of obatchd. A time is a number in the unit that its name ends with, or a text with",
        'a unit of its own: `"90s"`, `"90m"`, `"2h"`, `"3d"`, `"1h30m"`.',
    ]
    for section, group in groupby(leaves(), key=lambda leaf: leaf.section):
        title = f"[{section}]" if section else "Top level"
        lines += ["", f"## {title}", ""]
        if section:
            lines += [_section_text(section), ""]
        lines += ["| setting | type | default | change | meaning |", "|---|---|---|---|---|"]
        lines += [_row(leaf) for leaf in group]
    return "\n".join(lines) + "\n"


def show(settings: Settings, origin: Mapping[str, str]) -> str:
    """The settings in force as TOML, each with its origin, by dotted key, or "default"; secrets are hidden."""
    lines = []
    for section, group in groupby(leaves(), key=lambda leaf: leaf.section):
        if section:
            lines += ["", f"[{section}]"]
        for leaf in group:
            value = _inline(visible_value(settings, leaf))
            lines.append(f"{leaf.name} = {value}  # {origin.get(leaf.key, 'default')}")
    return "\n".join(lines) + "\n"


def visible_value(settings: Settings, leaf: Leaf) -> Any:
    """A setting's value as plain data, with tokens and the values of environment variables hidden."""
    value = value_of(settings, leaf)
    if leaf.field.repr is False:
        return _HIDDEN if value else ""
    if leaf.key == "servers.environment":  # a proxy's address may hold a password
        return dict.fromkeys(value, _HIDDEN)
    return TypeAdapter(Any).dump_python(value)


def _section_text(section: str) -> str:
    text = " ".join((Settings.model_fields[section].annotation.__doc__ or "").replace("``", "").split())
    return f"{text} {_NOTES.get(section, '')}".strip()


def _meaning(leaf: Leaf) -> str:
    return f"{leaf.field.description} {_NOTES.get(leaf.key, '')}".strip()


def _comment(text: str) -> Iterator[str]:
    return (f"# {line}" for line in textwrap.wrap(text, _WIDTH, break_long_words=False))


def default_text(leaf: Leaf) -> str:
    """The default of a setting as it is written in the file."""
    return _inline(leaf.field.default)


def _inline(value: Any) -> str:
    """One TOML value on one line; the library writes tables only as sections."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{_inline(key)} = {_inline(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    if isinstance(value, str):
        # toml 0.10.2 turns a backslash before x into TOML that nobody can read. JSON's strings are TOML's, but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return toml.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _row(leaf: Leaf) -> str:
    meaning = _meaning(leaf).replace("|", "\\|")
    name, default = f"`{leaf.name}`<br>`{leaf.variable}`", default_text(leaf)
    return f"| {name} | {leaf.type_text} | `{default}` | {leaf.reload} | {meaning} |"
