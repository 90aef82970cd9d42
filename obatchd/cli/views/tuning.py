"""``obatchctl servers --tuning`` for people: a table for each model and kind of GPU."""

from __future__ import annotations

import click

from obatchd.cli.command import Document
from obatchd.cli.views.text import NOTHING, number, size, table, wrapped
from obatchd.words import counted

_HEADINGS = (">SLOTS", "~RESULT", ">TOKENS/S", "?>±", "?>PROMPT/S", "?>ANSWER/S", "?>ANSWERS", ">VRAM")
_STATES = {
    "measured": "measured",
    "measuring": "is measured now",
    "does_not_fit": "does not fit",
    "server_died": "its server ended",
}


def tuning_page(document: Document) -> list[str]:
    """The document as lines."""
    lines = wrapped(f"No numbers of slots are tried: {document['reason']}", "") if not document["tune"] else []
    for profile in document["profiles"]:
        lines += ["", *_profile(profile)] if lines else _profile(profile)
    if not document["profiles"] and document["tune"]:
        lines.append("Nothing is measured yet: obatchd tries numbers of slots while long jobs run.")
    return lines


def _profile(profile: Document) -> list[str]:
    about = f"{profile['model']} ({profile['context_length']}) on {profile['device']}"
    versions = [
        f"{name} {profile[field]}" for name, field in (("Ollama", "ollama"), ("driver", "driver")) if profile[field]
    ]
    off = profile["state"] == "off"
    rows = [_row(one, profile["chosen"], "fastest" if off else "chosen") for one in profile["tried"]]
    memory = profile["slot_bytes"]
    return [
        *(click.style(line, bold=True) for line in wrapped(", ".join([about, *versions]), "")),
        *wrapped(_past(profile["chosen"]) if off else _now(profile), "  "),
        *(table(_HEADINGS, rows) if rows else []),
        *(["  TOKENS/S counts those of prompts and of answers."] if rows else []),
        *([f"  One slot takes {size(memory)} of VRAM."] if memory else []),
    ]


def _now(profile: Document) -> str:
    found = f"{counted(profile['chosen'], 'slot')}: " if profile["chosen"] else ""
    return f"{found}{profile['reason']}"


def _past(chosen: int | None) -> str:
    """What is known where nothing is searched; why not stands above all models."""
    if chosen is None:
        return "the search was not over"
    return f"{counted(chosen, 'slot')} {'was' if chosen == 1 else 'were'} the fastest when that was measured"


def _row(one: Document, chosen: int | None, best: str) -> list[object]:
    state = best if one["slots"] == chosen else _STATES.get(one["state"]) or str(one["state"])
    return [
        one["slots"],
        state,
        number(one["tokens_per_s"], digits=1),
        number(one["spread_percent"], " %", digits=1),
        number(one["prompt_tokens_per_s"], digits=0),
        number(one["answer_tokens_per_s"], digits=0),
        one["answers"] or NOTHING,
        size(one["vram_bytes"]) if one["vram_bytes"] else NOTHING,
    ]
