"""Small words for people, which every room needs: numbers with their nouns."""

from __future__ import annotations


def count(number: int, noun: str, several: str = "") -> str:
    """A number with its noun: ``1 job``, ``1,200 jobs``; ``several`` where the plural has more than an ``s``."""
    return f"{number:,} {noun if number == 1 else several or f'{noun}s'}"
