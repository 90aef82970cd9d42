"""Values that the other side tells: none may be so long, or so much no number, that it harms whoever shows it."""

from __future__ import annotations

import math

import msgspec

from obatchd.errors import ClusterError

_MOST_TEXT = 2**20  # characters; a store's words about a model are the longest


def check(told: object) -> None:
    """Look at everything in a message or answer. Raises ClusterError (``untrue``) where a value cannot be."""
    rest = [told]
    while rest:
        match value := rest.pop():
            case str():
                if len(value) > _MOST_TEXT:
                    raise ClusterError(f"a text of {len(value)} characters", code="untrue")
            case float():
                if not math.isfinite(value):
                    raise ClusterError(f"a number that is {value}", code="untrue")
            case msgspec.Struct():
                rest += [getattr(value, name) for name in value.__struct_fields__]
            case dict():
                rest += [*value.keys(), *value.values()]
            case list() | tuple():
                rest += value
