"""Words for people that every room needs: numbers with their nouns, and errors of libraries."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

_MSGSPEC_PLACE = re.compile(r"JSON is malformed: (.*) \(byte (\d+)\)")
_JSON_PLACE = re.compile(r"(.*): line (\d+) column (\d+) \(char \d+\)")
_TYPE = re.compile(r"`([^`]+)`")
ENDED = {
    "done": "is done",
    "failed": "failed",
    "cancelled": "was cancelled",
    "expired": "expired",
}  # of a job, in a sentence
LINES_TOLD = 10  # of a drop, in a sentence
_KINDS = {
    "int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "array": "a list",
    "object": "an object", "null": "nothing",
}  # fmt: skip
_MISFITS = (
    (re.compile(r"^Expected (.+), got (.+)$"), r"must be \1, not \2"),
    (re.compile(r"^Expected (.+)$"), r"must be \1"),
    (re.compile(r"^Object missing required field (.+)$"), r"lacks the field \1"),
    (re.compile(r"^Object contains unknown field (.+)$"), r"has the unknown field \1"),
    (re.compile(r"^Invalid enum value (.+)$"), r"has the unknown value \1"),
)


def counted(number: int, noun: str, several: str = "") -> str:
    """A number with its noun: ``1 job``, ``1,200 jobs``; ``several`` where the plural has more than an ``s``."""
    return f"{number:,} {noun if number == 1 else several or f'{noun}s'}"


def to_mend(count: int, lines: Sequence[int]) -> str:
    """What to do about ``count`` lines that cannot be retried, of which ``lines`` are the first."""
    names = ", ".join(map(str, lines)) + (f" and {count - len(lines):,} more" if count > len(lines) else "")
    them = "it" if count == 1 else "them"
    return (
        f"{count:,} cannot be retried: mend {'line' if count == 1 else 'lines'} {names} of the drop and submit {them}"
    )


def server_state(state: str) -> str:
    """The state of a server for people: "server gpu0 is …"."""
    return "down" if state == "backoff" else state


def binary_size(size_bytes: float) -> str:
    """Bytes with a binary unit: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def energy(energy_j: float) -> str:
    """Joules in kilowatt-hours, or in watt-hours where they are few: ``1.25 kWh``, ``3.2 Wh``."""
    watt_hours = energy_j / 3600
    return f"{three_digits(watt_hours / 1000)} kWh" if watt_hours >= 100 else f"{three_digits(watt_hours)} Wh"


def three_digits(value: float) -> str:
    """A number that is not negative with three significant digits: ``0.0580``, ``1.25``, ``12.0``, ``1,234``."""
    if value < 0.001:
        return "below 0.001" if value else "0"
    rounded = float(f"{value:.3g}") if value < 1000 else value
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(rounded)))}f}"


def shortened(text: str, most: int) -> str:
    """A text of ``most`` characters at most; where it is cut, between words if it can be, it says so."""
    if len(text) <= most:
        return text
    whole, _, _ = text[:most].rpartition(" ")
    return f"{whole if len(whole) > most // 2 else text[: most - 1]}…"


def job_ending(requests: int | None, failed: int, cancelled: int, expired: int) -> str:
    """The one word for how a job ended: somebody or its deadline ended it early, or there is no answer."""
    if failed and failed == requests:
        return "failed"
    return "cancelled" if cancelled else "expired" if expired else "done"


def not_json(error: Exception, raw: bytes = b"") -> str:
    """Why a text is not JSON, in plain words, from the error of msgspec or of :mod:`json`; ``raw`` is the text."""
    said = str(error)
    if said == "Input data was truncated":
        return "it is not JSON: its end is missing"
    if found := _MSGSPEC_PLACE.match(said):
        before = raw[: int(found[2])]
        line, column = before.count(b"\n") + 1, len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
    elif found := _JSON_PLACE.match(said):
        line, column = int(found[2]), int(found[3])
    else:
        return f"it is not JSON: {said}"
    place = f"line {line}, column {column}" if line > 1 else f"column {column}"
    return f"it is not JSON: {found[1][:1].lower()}{found[1][1:]} in {place}"


def said(error: Exception) -> str:
    """An error of the system without its number: the file, where it names one, and what is wrong."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def not_written(path: Path, error: OSError) -> str:
    """Why ``path`` cannot be written, in plain words; of a folder that is missing its name."""
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError) and not os.path.isdir(path.parent):
        there = os.path.lexists(path.parent)
        reason = f"{path.parent} is not a folder" if there else f"there is no folder {path.parent}"
    return f"{path} cannot be written: {reason}"


def misfit(error: Exception) -> str:
    """What of a document has another form than it must have, in plain words, from a ValidationError of msgspec."""
    said, _, place = str(error).partition(" - at `$")
    said = _TYPE.sub(lambda found: " or ".join(_KINDS.get(kind, kind) for kind in found[1].split(" | ")), said)
    for words, plain in _MISFITS:
        said = words.sub(plain, said)
    return f"{place.strip('.`') or 'it'} {said}"


def in_order(name: str) -> list[str | int]:
    """For sorting names: numbers in them count as such, so that node2 comes before node10."""
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", name)]
