"""Texts for people, as far as a machine can judge them: scripts/texts.py collects every one."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from obatchd.cli import obatchctl
from obatchd.words import counted, misfit, not_json

TEXTS = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "texts.py"))
# Words of Python, of its libraries, and of people who write programs.
_NO_WORDS = re.compile(
    r"\b(int|str|bool|dict|NoneType|None|tuple|kwargs|INTEGER RANGE|FLOAT RANGE|an integer|a boolean|a string)\b|"
    r"__name__|byte offset|\((s|es|ies)\)(?!:)|\\$\\."
)
_VALUE = re.compile(r"\{[^{}]*\}")


@pytest.mark.parametrize(
    ("number", "noun", "several", "words"),
    [
        (0, "job", "", "0 jobs"),
        (1, "job", "", "1 job"),
        (2, "job", "", "2 jobs"),
        (1200, "try", "tries", "1,200 tries"),
    ],
)
def test_numbers_and_nouns_agree(number: int, noun: str, several: str, words: str) -> None:
    assert counted(number, noun, several) == words


@pytest.mark.parametrize("kind", ["help_texts", "settings_texts"])
def test_no_text_has_words_of_a_programming_language(kind: str) -> None:
    texts = list(TEXTS[kind]())
    assert len(texts) > 50, "the script finds them"
    assert [text for text in texts if _NO_WORDS.search(words_of(text.text))] == []


def words_of(text: str) -> str:
    """The text without what is put into it, but for the names of types; those of defects are for reports."""
    while (
        shorter := _VALUE.sub(
            lambda value: "__name__" * ("__name__" in value[0] and "type(error)" not in value[0]), text
        )
    ) != text:
        text = shorter
    return text


# The modules are read once for all that is asked of their messages: in several processes it would be done in each.
def test_messages_are_complete_and_have_no_markup_and_each_number_is_counted() -> None:
    messages = [text.text for text in TEXTS["messages"]()]
    for words in (
        "is not over; cancel it first: obatchctl",
        "{counted(self.outcomes.total() + waiting, 'request')} = {",
        "{'SLOTS'}  OUTPUT",
        "this GPU other GPUs of the run slowed down",
        "Save the marks as CSV",
        "Nothing is marked yet.",
    ):
        assert any(words in text for text in messages), words
    assert len(messages) > 50 and [text for text in messages if _NO_WORDS.search(words_of(text))] == []
    markup = re.compile(r"<(div|span|td|p|svg|path)\b|\{\s*(border|font|margin|display)\S*:|aria-")
    assert [text for text in messages if markup.search(text)] == []
    assert list(TEXTS["uncounted"]()) == []


class Card(msgspec.Struct, forbid_unknown_fields=True):
    index: int
    name: str | None = None
    share: float = 0.0


class Report(msgspec.Struct):
    cards: list[Card]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"cards": [{"index": "x"}]}, "cards[0].index must be a whole number, not text"),
        ({"cards": [{"index": 1, "name": 2}]}, "cards[0].name must be text or nothing, not a whole number"),
        ({"cards": [{"index": 1, "share": True}]}, "cards[0].share must be a number, not true or false"),
        ({"cards": None}, "cards must be a list, not nothing"),
        ({}, "it lacks the field cards"),
        ({"cards": [{"index": 1, "slot": 2}]}, "cards[0] has the unknown field slot"),
        ([], "it must be an object, not a list"),
    ],
)
def test_a_document_of_another_form_is_told_without_types_of_python(document: object, words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(document, Report)
    assert misfit(caught.value) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1', "it is not JSON: its end is missing"),
        ("{oops}", "it is not JSON: object keys must be strings in column 2"),
        ('{"ä": x}', "it is not JSON: invalid character in column 7"),
        ('{"a": 1,\n "b": x}', "it is not JSON: invalid character in line 2, column 7"),
    ],
)
def test_a_text_that_is_no_json_is_told_with_line_and_column(text: str, words: str) -> None:
    raw = text.encode()
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(raw)
    assert not_json(caught.value, raw) == words
    with pytest.raises(ValueError) as other:
        json.loads("[1,\n x]")
    assert not_json(other.value) == "it is not JSON: expecting value in line 2, column 2"


def groups(command: click.Command, context: click.Context) -> Iterator[tuple[click.Group, click.Context]]:
    """Every command that has commands of its own."""
    if isinstance(command, click.Group):
        yield command, context
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from groups(inner, click.Context(inner, parent=context))


def numbers(command: click.Command, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every option that takes a number, with the command before it."""
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            yield from numbers(inner, (*names, name))
    for option in command.params:
        if isinstance(option, click.Option) and isinstance(option.type, type(click.INT) | type(click.FLOAT)):
            yield (*names, option.opts[-1])


@pytest.mark.parametrize("words", [*numbers(obatchctl.main)], ids=" ".join)
def test_an_option_that_takes_a_number_says_so_in_plain_words(words: tuple[str, ...]) -> None:
    said = CliRunner().invoke(obatchctl.main, [*words, "three"]).stderr
    assert re.search(
        r"Invalid value for '[^\n]*': it must be a whole number( from \d+)?( to \d+)?$", said, re.MULTILINE
    )
    assert "INTEGER" not in CliRunner().invoke(obatchctl.main, [*words[:-1], "--help"]).stdout


def test_a_number_that_is_out_of_its_range_is_told_the_range(tmp_path: Path) -> None:
    for value in ("three", "0", "101", "1.5"):
        said = CliRunner().invoke(obatchctl.main, ["submit", str(tmp_path), "--repeat", value]).stderr
        assert said.endswith("Error: Invalid value for '--repeat': it must be a whole number from 1 to 100\n")


def test_the_list_of_commands_cuts_no_sentence_in_80_columns() -> None:
    cut = []
    for group, context in groups(obatchctl.main, click.Context(obatchctl.main)):
        names = group.list_commands(context)
        room = 80 - 2 - 6 - max(map(len, names))  # click's margin, and its gaps before and behind a name
        for name in names:
            command = group.get_command(context, name)
            assert command is not None
            if (words := command.get_short_help_str(room)).endswith("..."):
                cut.append((name, words))
    assert cut == []
