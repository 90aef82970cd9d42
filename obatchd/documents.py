"""The documents that obatchd shows: in files, over its API, to programs."""

from __future__ import annotations

SCHEMA = 1  # the number that every document carries as ``schema``
