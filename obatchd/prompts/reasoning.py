"""Reasoning that a model wrote into its answer instead of beside it.

Ollama splits reasoning off for models whose template it knows. With others, and with old versions, the tags stay in the
text. A tag counts at the very beginning alone, or where the template opened it; any other is a mention, and text.
"""

from __future__ import annotations

import re

# Tags around reasoning, as models were seen to write them: DeepSeek, Qwen and many more; Magistral; Kimi; Seed;
# OpenThinker; Command; Gemma; and the channels of gpt-oss (Harmony).
_TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<thoughts>": "</thoughts>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<seed:think>": "</seed:think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
    "<unused94>thought": "<unused95>",
}
_CHANNEL = r"(?:<\|start\|>assistant)?<\|channel\|>{}(?:(?!<\|message\|>)[^\n])*<\|message\|>"
_CHANNEL_END = "<|end|>"
_OPENING = "|".join(f"({re.escape(opening)})" for opening in _TAGS) + f"|({_CHANNEL.format('(?:analysis|commentary)')})"
_CLOSINGS = [re.compile(re.escape(closing), re.IGNORECASE) for closing in (*_TAGS.values(), _CHANNEL_END)]
_FIRST = {opening[0] for opening in _TAGS}
_FIRST_TAGS = tuple(tag.lower() for tag in (*_TAGS, "<|start|>assistant", "<|channel|>"))
_BEGINS = re.compile(rf"\s*(?:{_OPENING})", re.IGNORECASE)
# What some of them put around the answer then.
_ANSWER = re.compile(
    rf"\s*(?:{_CHANNEL.format('final')}|<\|begin_of_solution\|>|<\|START_RESPONSE\|>)(.*?)"
    r"(?:<\|return\|>|<\|end\|>|<\|end_of_solution\|>|<\|END_RESPONSE\|>)?\s*",
    re.DOTALL,
)
# In a template of Ollama's (Go's text/template): an opening tag after which the answer begins.
_OPENS = re.compile(rf"(?:{_OPENING})\s*(?:\Z|{{{{-?\s*(?:end|else|\.Response)\b)", re.IGNORECASE)
_JSON_BEGINS = ("{", "[")
OPENS = "opens "  # before the tag that a model's template opens: dispatch passes it among the model's capabilities


def opened_by(template: str) -> str:
    """The opening tag that a model's template puts before every answer; empty where it puts none."""
    return next((tag for found in _OPENS.finditer(template) for tag in found.groups() if tag), "")


def may_begin(text: str) -> bool:
    """Whether an answer that has come as far as ``text`` has a tag at its beginning, or may yet have one."""
    begin = text.lstrip()[:32].lower()
    return any(begin.startswith(tag) or tag.startswith(begin) for tag in _FIRST_TAGS)


def split_reasoning(text: str, think: str = "", *, opened: str = "", cut: bool = False) -> tuple[str, str]:
    """The answer without reasoning, and the reasoning: the part given apart (``think``) and the part in the text.

    ``opened`` is the tag that the template put before the text. A tag that is never closed holds all that follows if
    the answer was ``cut`` by its token limit; else it is text, like all tags after the beginning.
    """
    if not opened and text.lstrip()[:1] not in _FIRST:
        return text, think
    rest = text
    if opened and not think and not _BEGINS.match(text) and not text.lstrip().startswith(_JSON_BEGINS):
        rest = opened + text
    thoughts = [think]
    while (tag := _BEGINS.match(rest)) is not None and tag.lastindex is not None:
        closing = _CLOSINGS[tag.lastindex - 1].search(rest, tag.end())
        if closing is None and not cut:
            break
        thoughts.append(rest[tag.end() : closing.start() if closing else None])
        rest = rest[closing.end() :] if closing else ""
    answer = _ANSWER.fullmatch(rest)
    if len(thoughts) == 1 and answer is None:
        return text, think
    rest = answer[1] if answer else rest
    return rest.strip(), "\n\n".join(stripped for thought in thoughts if (stripped := thought.strip()))
