"""Every text of obatchd that people may see, in one file, to be read as somebody who sees it for the first time.

    .venv/bin/python scripts/texts.py > texts.txt

It is complete by construction: of the syntax trees of all modules it takes every text that has two words or more, of
HTML the words between its tags, and leaves out what is named here, each with its reason. Help and settings come as they
are shown. {…} is a value.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "obatchd"
# No words of ours for people.
LEFT_OUT = {
    "simulator": "the words of Ollama and NVML, which it imitates",
    "burnin/run/workload.py": "prompts of the load",
    "burnin/verdict/canary_prompts.py": "prompts of the output check",
    "burnin/report/style.py": "CSS",
    "jobs/store/tables.py": "SQL",
    "jobs/store/usage.py": "SQL",
}
_SQL = re.compile(
    r"^\s*\(?\b(SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP|PRAGMA|WITH|BEGIN|FROM|WHERE|VACUUM|REPLACE)\b"
)
_CSS = re.compile(r"\{\s*[a-z-]+:\s[^{}]*\}")  # a block of it; the braces of values are no part of what is asked
_HTML = re.compile(r"^\s*<[a-z!/]|</[a-z]+>|<[a-z]+ [a-z-]+=")
_TAGS = re.compile(r"\s*(<(?:style|defs|script)\b.*</(?:style|defs|script)>|<[a-z!/][^<>]*>|<[a-z][^<>]*$)", re.DOTALL)
_VALUE = "{…}"
_WORD = re.compile(r"[A-Za-z]{2,}")
_TWO_WORDS = re.compile(r"([A-Za-z]{2,}|…})[^\w\s{]{0,2}\s+([^\w\s{]{1,2}\s+)?[^\w\s{]{0,2}([A-Za-z]|{)")
_IN_VALUES = re.compile(r"[A-Za-z]{2,}[,:;]?\s+\(?[A-Za-z{]")  # two words, where words stand in what is put in, too
_IN_SCRIPT = re.compile(r"[\"`]([^\"`\n]*)[\"`]")


# A plural right behind a number, and what may stand before a number that is many by itself.
_PLURAL = re.compile(
    r" (?!(?:answers|cannot|crash|makes|may|of|only|or|The|to|tries)\b)(?:[A-Za-z-]+ ){0,2}"
    r"(answers|banks|blocks|bytes|cells|columns|crashes|errors|faults|files|GPUs|images|inodes|jobs|lanes|"
    r"lines|minutes|models|pages|parts|processes|replays|requests|rows|servers|settings|slots|sources|texts|times|"
    r"tokens|tries|values|vectors|XIDs)\b(?!, more than| of|/)"
)
_OF_MANY = re.compile(r"(\bof|more than|fewer than|less than|at least|the last|from \d+ to|needs) $")

_CODE = re.compile(r"=>|=\{|&&|\|\||=$|html$|\bclass=|aria-")
_BETWEEN_TAGS = re.compile(r"[>}]([^<>{}`$=;]*\w [^<>{}`$=;]*)<")


class Text(NamedTuple):
    """A text and where it is made."""

    place: str  # module:line below obatchd/
    text: str


class Event(NamedTuple):
    """A log event as the code makes it."""

    place: str
    names: tuple[str, ...]  # more than one, or a beginning with *, where a part is made of a value
    fields: frozenset[str]
    level: str


@cache
def modules() -> tuple[tuple[str, tuple[ast.AST, ...]], ...]:
    """Each module's path below the package, with all nodes of its tree."""
    return tuple(
        (path.relative_to(PACKAGE).as_posix(), tuple(ast.walk(ast.parse(path.read_text("utf-8")))))
        for path in sorted(PACKAGE.rglob("*.py"))
    )


def _for_people() -> Iterator[tuple[str, tuple[ast.AST, ...]]]:
    return (
        (place, nodes) for place, nodes in modules() if not any(place.startswith(left_out) for left_out in LEFT_OUT)
    )


def messages() -> Iterator[Text]:
    """Every text of the code with two words or more that is neither docstring nor SQL, of HTML the words in it."""
    for place, nodes in _for_people():
        within = _docstrings(nodes)
        for node in nodes:
            if not isinstance(node, ast.Constant | ast.JoinedStr) or id(node) in within:
                continue
            is_html = bool(_HTML.search(_spoken(node)))
            if isinstance(node, ast.JoinedStr):  # texts in its values are shown with it; those in values of HTML, alone
                within.update(id(part) for part in (node.values if is_html else ast.walk(node)) if part is not node)
            if text := _of_html(node) if is_html else _message(node):
                yield Text(f"{place}:{node.lineno}", text)
    for path in sorted(path for path in PACKAGE.rglob("*.js") if "vendor" not in path.parts):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            texts = (match[1].replace("${", "{") for match in _IN_SCRIPT.finditer(line))
            found = (" ".join(_TAGS.sub(" ", text).split()) if _HTML.search(text) else text for text in texts)
            # Of templates in templates, pieces of the code between them pass for texts; words stand between tags.
            between = (words[1].strip() for words in _BETWEEN_TAGS.finditer(line))
            found = (*(text for text in found if not _CODE.search(text)), *between)
            place = f"{path.relative_to(PACKAGE).as_posix()}:{number}"
            yield from (Text(place, text) for text in found if _TWO_WORDS.search(text))


def _message(node: ast.Constant | ast.JoinedStr) -> str:
    """The text, if it is one for people."""
    text, spoken = _text(node), _spoken(node)
    is_words = (_TWO_WORDS.search(spoken) and _WORD.search(spoken)) or _IN_VALUES.search(text)
    return text if is_words and not _SQL.search(text) and not _CSS.search(spoken.replace(_VALUE, "")) else ""


def _of_html(node: ast.Constant | ast.JoinedStr) -> str:
    """The words between the tags."""
    words = " ".join(_TAGS.sub(" ", _spoken(node)).split())
    return words if _WORD.search(words) else ""


def _spoken(node: ast.Constant | ast.JoinedStr) -> str:
    """The text as far as it is known: of a value that is a text itself its text, of one that is counted the noun."""
    if isinstance(node, ast.Constant):
        return _text(node)
    return "".join(_known(part) for part in node.values)


def _known(part: ast.expr) -> str:
    value = part.value if isinstance(part, ast.FormattedValue) else part
    if isinstance(value, ast.Constant):
        return _text(value)
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "counted":
        return f"{_VALUE} {_text_of(value.args[1])}"
    return _VALUE


def uncounted() -> Iterator[Text]:
    """Texts in which a number that may be 1 stands before a plural: obatchd.words.counted says both right."""
    for place, nodes in _for_people():
        for node in (node for node in nodes if isinstance(node, ast.JoinedStr)):
            for before, value, after in zip([None, *node.values], node.values, node.values[1:], strict=False):
                is_counted = isinstance(value, ast.FormattedValue) and _PLURAL.match(_text_of(after))
                if is_counted and not _OF_MANY.search(_text_of(before)) and not ast.unparse(value.value).isupper():
                    yield Text(f"{place}:{node.lineno}", _text(node))


def events() -> Iterator[Event]:
    """Every log event."""
    for place, nodes in modules():
        if place == "log.py":
            continue
        for call in (node for node in nodes if isinstance(node, ast.Call)):
            level = _level(call.func)
            if level and call.args and not _is_passed_on(call, nodes):
                fields = frozenset(keyword.arg for keyword in call.keywords if keyword.arg)
                yield Event(f"{place}:{call.lineno}", _names(call.args[0], nodes), fields, level)
            elif isinstance(call.func, ast.Attribute) and call.func.attr == "until_disk_takes":
                fields = frozenset({"reason", *(keyword.arg or "" for keyword in call.keywords)})
                yield Event(f"{place}:{call.lineno}", _names(call.args[2], nodes), fields, "error")


def help_texts() -> Iterator[Text]:
    """The help of every command, as it is shown."""
    sys.path.insert(0, str(ROOT))
    from obatchd.cli import obatchctl, obatchd

    def shown(command: click.Command, context: click.Context) -> Iterator[Text]:
        yield Text(context.command_path, command.get_help(context))
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                yield from shown(inner, click.Context(inner, info_name=name, parent=context))

    for name, command in (("obatchd", obatchd.main), ("obatchctl", obatchctl.main)):
        yield from shown(command, click.Context(command, info_name=name, max_content_width=120, terminal_width=120))


def settings_texts() -> Iterator[Text]:
    """The text of every setting, with its type and default as pages show them."""
    sys.path.insert(0, str(ROOT))
    from obatchd.settings.reading import leaves
    from obatchd.settings.text import default_text

    for leaf in leaves():
        yield Text(leaf.key, f"{leaf.field.description} ({leaf.type_text}; default {default_text(leaf)})")


def _level(called: ast.expr) -> str:
    """The level of a call of an event logger; empty for any other call."""
    if isinstance(called, ast.IfExp):
        return min(_level(called.body), _level(called.orelse))
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id in ("log", "_log"):
        return called.attr if called.attr in ("debug", "info", "warning", "error", "exception") else ""
    return ""


def _is_passed_on(call: ast.Call, nodes: Iterable[ast.AST]) -> bool:
    """Whether the event is an argument of the function around: its callers name it."""
    event = call.args[0]
    return isinstance(event, ast.Name) and any(
        event.id in {argument.arg for argument in function.args.args} and call in ast.walk(function)
        for function in nodes
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def _names(node: ast.expr, nodes: Iterable[ast.AST]) -> tuple[str, ...]:
    """The names that an event may have; of a variable every text that the module assigns to it."""
    if isinstance(node, ast.Constant):
        return (str(node.value),)
    if isinstance(node, ast.JoinedStr):
        return (re.sub(r"\{.*?\}", "*", _text(node)),)
    found = [
        value.value
        for each in nodes
        if isinstance(each, ast.Assign)
        and ast.unparse(each.targets[0]).strip("()").split(", ")[-1] == ast.unparse(node)
        for value in ast.walk(each.value)
        if isinstance(value, ast.Constant) and value.value
    ]
    return tuple(map(str, found))


def _docstrings(nodes: Iterable[ast.AST]) -> set[int]:
    return {
        id(node.body[0].value)
        for node in nodes
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
        # click shows the docstring of a command; it is in the help.
        and isinstance(node.body[0].value, ast.Constant)
    }


def _text_of(node: ast.expr | None) -> str:
    return _text(node) if isinstance(node, ast.Constant) else ""


def _text(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(
        _text(part) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"  # type: ignore[attr-defined]
        for part in node.values
    )


def main() -> None:
    """Print them, most seen first."""
    for title, texts in (("HELP", help_texts()), ("SETTINGS", settings_texts()), ("MESSAGES", messages())):
        print(f"\n==== {title}\n")
        for text in texts:
            print(f"[{text.place}]\n{text.text}\n" if title == "HELP" else f"[{text.place}]  {text.text}")
    from obatchd.spoken import WORDS

    print("\n==== EVENTS IN A TERMINAL\n")
    for name, words in WORDS.items():
        print(f"[{name}]  {words or '(not shown)'}")


if __name__ == "__main__":
    main()
