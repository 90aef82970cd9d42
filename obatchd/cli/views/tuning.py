"""``obatchctl servers --tuning`` for people: a table for each model and kind of GPU."""

from __future__ import annotations

import click

from obatchd.cli.command import Document, clean
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
    chosen = profile["chosen"]
    found = f"{counted(chosen, 'slot')}: " if chosen and profile["state"] != "off" else ""
    rows = [_row(one, chosen) for one in profile["tried"]]
    memory = profile["slot_bytes"]
    return [
        click.style(clean(f"{about}{', ' if versions else ''}{', '.join(versions)}"), bold=True),
        *wrapped(f"{found}{profile['reason']}", "  "),
        *(table(_HEADINGS, rows) if rows else []),
        *([f"  One slot takes {size(memory)} of VRAM."] if memory else []),
    ]


def _row(one: Document, chosen: int | None) -> list[object]:
    state = "chosen" if one["slots"] == chosen else _STATES.get(one["state"]) or str(one["state"])
    if one["state"] == "measuring" and one["answers"]:
        state += f" ({counted(one['answers'], 'answer')})"
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
