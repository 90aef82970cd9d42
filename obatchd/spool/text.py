"""Text of the files of the outbox: JSON that is a line to everybody, and the text of a response for people."""

from __future__ import annotations

import re

# Tokens that end or divide turns in the templates of Llama, ChatML, Phi, Gemma and Mistral; a model that was converted
# without them as stop tokens writes them out.
_TOKEN = re.compile(
    r"<\|(?:im_start|im_end|eot_id|end_of_text|begin_of_text|endoftext|end|eom_id)\|>|</?s>|<(?:start|end)_of_turn>"
)
_OUTER_FENCE = re.compile(r"\A```(?:markdown|md)[ \t]*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)
_BLANK_START = re.compile(r"\A(?:[ \t]*\n)+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # all but tab, line feed and carriage return

# Beside the line feed, where str.splitlines and others end a line; JSON has them in strings alone.
_LINE_ENDS = {"\x85".encode(): b"\\u0085", "\u2028".encode(): b"\\u2028", "\u2029".encode(): b"\\u2029"}


def one_line(document: bytes) -> bytes:
    """JSON that any reader of lines takes for one: the same, with other ends of lines in it escaped."""
    for character, escape in _LINE_ENDS.items():
        document = document.replace(character, escape)
    return document


def clean_text(text: str) -> str:
    """A response for people: no template tokens, control characters, carriage returns, or blank lines around it.

    A code fence that says it holds Markdown and is around the whole is taken off; every other fence is content.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "<" in text:
        text = _TOKEN.sub("", text)
    text = _around(_CONTROL.sub("", text))
    if text.startswith("```") and (whole := _OUTER_FENCE.match(text)) is not None and "\n```" not in whole[1]:
        text = _around(whole[1])
    return text


def _around(text: str) -> str:
    return _BLANK_START.sub("", text).rstrip()
