"""Fields of lines that may be meant otherwise than they are taken: counted while a drop is read, and told once.

Rows of tables, and records that a template or a column makes into prompts, are data and are not looked at.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable

from obatchd.jobs.formats.reader.fields import LEFT_OUT, OPTION, OUTSIDE
from obatchd.jobs.formats.reader.settings import OPTIONS, SETTINGS

_LIMIT = 2000  # different names that are looked at in one drop, of data and of odd fields
_TOLD = 8  # names in one note
_NAME_CHARACTERS = 60
_ALIKE, _SAME_LETTERS_ALIKE = 0.85, 0.8  # difflib's ratio: modle and model, but not temp, which may be a patient's
_ORDINARY = frozenset({"mode", "modes", "top"})  # words of their own that are as near
_FIELDS, _OPTIONS = tuple(sorted(SETTINGS | {"images"})), tuple(sorted(OPTIONS))
_BESIDE = "obatchd takes these fields beside the prompt for settings"
_IF_DATA = "; if they are data, submit with --text-column or --template"
_UNKNOWN_OPTIONS = "Ollama is not known to have these options, which are sent to it all the same"
_DATA = "obatchd takes these fields for data, because it knows no setting of that name"
_LEFT_OUT = "obatchd leaves these fields of the body out, because it knows no setting of that name"
_OUTSIDE = "obatchd does not read these fields beside the body of a line; put them into it"


class FieldNotes:
    """Of one drop."""

    def __init__(self) -> None:
        # Names that need no second look: they are data and look like nothing else, or ids and prompts.
        self.data = {"id", "custom_id", "prompt"}
        self._meant: dict[str, str] = {}  # by the name of a field that is data: the one that was probably meant
        self._misspelt: Counter[str] = Counter()
        self._odd: Counter[str] = Counter()
        self._near: dict[str, str] = {}  # by the name of a field of a body that is left out: as above, if any

    def look(self, data: Iterable[str]) -> None:
        """A line has fields of these names that are data."""
        for name in data:
            if name in self._meant:
                self._misspelt[name] += 1
            elif name not in self.data and len(self.data) + len(self._meant) < _LIMIT:
                if meant := _nearest(name, _FIELDS):
                    self._meant[name] = meant
                    self._misspelt[name] = 1
                else:
                    self.data.add(name)

    def odd(self, names: tuple[str, ...]) -> None:
        """A line has these fields (:attr:`~obatchd.jobs.formats.reader.fields.Fields.odd`)."""
        for name in names:
            if name in self._odd or len(self._odd) < _LIMIT:
                self._odd[name] += 1

    def notes(self) -> list[str]:
        """One note of each kind at most, for the drop's author."""
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("", OPTION, LEFT_OUT, OUTSIDE)}
        for name, lines in self._odd.items():
            kind = next((kind for kind in (OPTION, LEFT_OUT, OUTSIDE) if name.startswith(kind)), "")
            counts[kind][name.removeprefix(kind)] = lines
        left_out = counts[LEFT_OUT]  # results have those that look like nothing known
        self._near |= {name: _nearest(name, _FIELDS) for name in left_out.keys() - self._near.keys()}
        near = {name: meant for name, meant in self._near.items() if meant not in ("", name)}
        return [
            *_note(_DATA, self._misspelt, lambda name: _hint(self._meant[name])),
            *_note(_BESIDE, counts[""], lambda name: "", _IF_DATA),
            *_note(_UNKNOWN_OPTIONS, counts[OPTION], _option_hint),
            *_note(_LEFT_OUT, Counter({name: left_out[name] for name in near}), lambda name: _hint(near[name])),
            *_note(_OUTSIDE, counts[OUTSIDE], lambda name: ""),
        ]


def _note(words: str, counts: Counter[str], hint: Callable[[str], str], remedy: str = "") -> list[str]:
    if not counts:
        return []
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = [
        f'"{name[:_NAME_CHARACTERS]}" in {lines:,} request{"" if lines == 1 else "s"}{hint(name)}'
        for name, lines in most[:_TOLD]
    ]
    more = f" and {len(most) - _TOLD:,} more" if len(most) > _TOLD else ""
    return [f"{words}: {', '.join(parts)}{more}{remedy}"]


def _option_hint(name: str) -> str:
    if name in SETTINGS:
        return f' ("{name}" stands beside the prompt, not among the options)'
    return _hint(_nearest(name, _OPTIONS))


def _hint(meant: str) -> str:
    return f' (did you mean "{meant}"?)' if meant else ""


def _nearest(name: str, names: tuple[str, ...]) -> str:
    """The known name that ``name`` is probably a misspelling of; empty where it looks like none."""
    small = name.strip().lower().replace("-", "_").replace(" ", "_")
    if small in _ORDINARY or len(small) > _NAME_CHARACTERS:
        return ""
    for known in difflib.get_close_matches(small, names, 3, _SAME_LETTERS_ALIKE):
        alike = difflib.SequenceMatcher(None, small, known).ratio() >= _ALIKE or sorted(small) == sorted(known)
        if alike and not small.startswith(f"{known}_"):  # temperature_c
            return known
    return ""
