"""The documents that obatchd shows as types: in files, over its API, to programs. This is where a field is looked up.

The order of the fields is their order in JSON. Times as text are ISO 8601 in UTC. ``null`` means unknown or not so,
never zero. Within one schema number fields are only added.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

SCHEMA = 1  # the number that every answer carries as ``schema``
Number = int | float  # as it was made: reading makes no 7.0 of a 7
_T = TypeVar("_T", bound=msgspec.Struct)


class Document(msgspec.Struct, tag_field="schema", tag=SCHEMA):
    """A document that stands for itself, in a file or a list, too: the number of its schema is its first field."""


def excerpt(kind: type[_T], whole: object, **own: Any) -> _T:
    """A document of a kind that has fields of ``whole``, and ``own`` ones."""
    return kind(**{name: getattr(whole, name) for name in kind.__struct_fields__ if name not in own}, **own)
