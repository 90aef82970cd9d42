"""The shapes of the documents that obatchd shows: which fields, in which order, nested how, of which types.

The recorded shapes in ``fixtures/documents`` are those of the daemon before documents had types of their own. A shape
is written as JSON: a scalar is its type (``"integer|null"`` where both were seen), a list has the shape of its
entries, an object has its fields in order, and an object whose names are data (``failures`` by code, say) has one entry
``"*"``. What was seen in several shapes stands in a list below ``"any"``.
"""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "fixtures" / "documents"
RECORD = "OBATCHD_RECORD_DOCUMENTS"  # set in the environment: add what is seen to the recorded shapes
# Fields that came later, as ``document.path.field``: everything else must stay as it was recorded.
ADDED = frozenset(
    {"idle: POST /v1/reload.next_job", "idle: POST /v1/reload of changed settings.next_job"}
    | {f"jobs: alarm job_done.{field}" for field in ("text", "cancelled", "expired")}
    | {"jobs: alarm disk_low.text", "gpus: alarm quarantine.text", "gpus: alarm server_failed.text"}
    | {"burnin: alarm burn_in_finished.text"}
)
# The same by name alone, wherever it stands: no recorded document has a field of this name.
LATER = frozenset(
    {
        "totals",
        "details",
        "gpu_s",
        "system_message",
        "template",
        "text_column",
        "id_column",
        "encoding",
        "lines",
        "sample",
        "cannot_have",
        "held_up",
        "next",
        "waiting_for_restart",
        "waiting",
        "digests",
        "families",
        "prompt_tokens_reused_estimate",
        "interactive",
        "http",
        "cost",
        "energy_j",
        "energy_percent",
        "energy_note",
        "tokens_per_j",
        "tokens_per_j_of_median_percent",
        "loads",
        "phases",
        "memory_percent",
        "left_out",
        "covered_percent",
        "stress_loads",
        "operations_per_s",
        "memory_bytes_per_s",
        "checked_bytes_per_s",
        "covered_bytes",
        "link_bytes_per_s",
        "stress_of_median_percent",
    }
)
_OLD_HOMES = {"energy_j": "slow_reading"}  # objects that had a field of this name all the time


def is_later(field: str, home: str) -> bool:
    """Whether a field of the object with this name came later."""
    return field in LATER and _OLD_HOMES.get(field) != home


_MAPS = {
    "counters", "dmi", "errors", "failures", "increases", "models", "options", "servers", "throttle_s", "watchdog",
}  # fmt: skip
_SCALARS: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}

Shape = dict[Any, Any]  # what was seen: the name of a scalar, "list", "map", or the fields of an object, in order


def shape_of(value: Any, name: str = "") -> Shape:
    """The shape of one JSON value, which is called ``name``."""
    if isinstance(value, list):
        return {"list": _of_all(value)}
    if isinstance(value, dict) and name in _MAPS:
        return {"map": _of_all(value.values())}
    if isinstance(value, dict):
        return {tuple(value): {key: shape_of(field, key) for key, field in value.items()}}
    return {_SCALARS[type(value)]: None}


def _of_all(values: Any) -> Shape:
    whole: Shape = {}
    for value in values:
        whole = merged(whole, shape_of(value))
    return whole


def merged(one: Shape, other: Shape) -> Shape:
    """What was seen in either."""
    both = dict(one)
    for kind, inner in other.items():
        if kind not in both or inner is None:
            both[kind] = inner
        elif isinstance(kind, tuple):
            both[kind] = {field: merged(both[kind][field], inner[field]) for field in kind}
        else:
            both[kind] = merged(both[kind], inner)
    return both


def differences(seen: Shape, recorded: Shape, path: str) -> list[str]:
    """What was seen and is not recorded: fields lost, renamed, retyped, in another order, or new and not in ADDED."""
    found: list[str] = []
    for kind, inner in seen.items():
        if isinstance(kind, tuple):
            kept = tuple(
                field
                for field in kind
                if f"{path}.{field}" not in ADDED and not is_later(field, path.rpartition(".")[2])
            )
            if kept not in recorded:
                found.append(f"{path}: the fields are {kept}; recorded are {[k for k in recorded]}")
                continue
            for field in kept:
                found += differences(inner[field], recorded[kept][field], f"{path}.{field}")
        elif kind not in recorded:
            found.append(f"{path}: is {kind}; recorded is {[k for k in recorded]}")
        elif inner is not None:
            found += differences(inner, recorded[kind], f"{path}[]" if kind == "list" else f"{path}.*")
    return found


def as_json(shape: Shape) -> Any:
    scalars = "|".join(sorted(kind for kind, inner in shape.items() if inner is None))
    shown: list[Any] = [scalars] if scalars else []
    for kind, inner in shape.items():
        if kind == "list":
            shown.append([as_json(inner)] if inner else [])
        elif kind == "map":
            shown.append({"*": as_json(inner)} if inner else {})
        elif inner is not None:
            shown.append({field: as_json(inner[field]) for field in kind})
    return shown[0] if len(shown) == 1 else {"any": shown}


def from_json(text: Any) -> Shape:
    if isinstance(text, str):
        return dict.fromkeys(text.split("|"))
    if isinstance(text, list):
        return {"list": from_json(text[0]) if text else {}}
    if "any" in text:
        whole: Shape = {}
        for one in text["any"]:
            whole = merged(whole, from_json(one))
        return whole
    if not text or "*" in text:
        return {"map": from_json(text["*"]) if text else {}}
    return {tuple(text): {field: from_json(inner) for field, inner in text.items()}}


class Documents:
    """Compares each document that a test sees with its recorded shape; with RECORD set it records instead.

    The documents of one family stand in one file, each under the state in which it was seen.
    """

    def __init__(self, family: str) -> None:
        self._path = RECORDED / f"{family}.json"
        self._family = family
        self._recorded = recorded(family)
        self.problems: list[str] = []
        self.seen: set[str] = set()

    def see(self, state: str, document: Any) -> Any:
        """Look at one document; returns it."""
        self.seen.add(state)
        shape = shape_of(document)
        if RECORD in os.environ:
            self._recorded[state] = merged(self._recorded.get(state, {}), shape)
        elif state in self._recorded:
            self.problems += differences(shape, self._recorded[state], f"{self._family}: {state}")
        else:
            self.problems.append(f"{self._family}: {state} was never recorded")
        return document

    def check(self) -> None:
        """Every recorded document was seen, and is as it was."""
        if RECORD in os.environ:
            self._path.write_text(_file(self._recorded))
            return
        assert not self.problems, "\n".join(self.problems)
        assert self.seen == set(self._recorded)


def _file(recorded: dict[str, Shape]) -> str:
    """Compact, and still fit for a diff: each state begins a line."""
    entries = []
    for state, shape in sorted(recorded.items()):
        lines = textwrap.wrap(json.dumps(as_json(shape)), 118, break_long_words=False, break_on_hyphens=False)
        entries.append(f"{json.dumps(state)}:\n" + "\n".join(lines))
    return "{\n" + ",\n".join(entries) + "\n}\n"


def recorded(family: str) -> dict[str, Shape]:
    """The recorded shapes of a family, by state."""
    path = RECORDED / f"{family}.json"
    return {name: from_json(text) for name, text in json.loads(path.read_bytes()).items()} if path.exists() else {}
