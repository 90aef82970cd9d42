"""The settings in force, as the parts of the daemon share them."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Current(Generic[T]):
    """Holds the value in force; a reload replaces it.

    Parts keep the holder, never its value, and read ``value`` at the moment of use: so a live setting is live
    everywhere at once.
    """

    def __init__(self, value: T) -> None:
        self.value = value
        self.waiting: list[str] = []  # settings of the file that differ, and count from a restart on, by dotted key
