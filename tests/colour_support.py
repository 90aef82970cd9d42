"""Colours as people see them, those with fewer kinds of cones too; contrast as WCAG 2.2 counts it."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable

# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency, 2009
EYES = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "no blue": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def _light(colour: str) -> list[float]:
    """Linear red, green and blue of a colour like ``#1845fb`` or ``#fff``."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def seen(colour: str, eyes: str) -> tuple[float, float, float]:
    """Its place in CIELAB, as those eyes see it."""
    r, g, b = (min(1, max(0, sum(map(operator.mul, row, _light(colour))))) for row in EYES[eyes])
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def least_distance(colours: Iterable[str], eyes: str) -> float:
    """ΔE*ab of the two that are most alike."""
    return min(math.dist(*pair) for pair in itertools.combinations([seen(one, eyes) for one in colours], 2))


def contrast(one: str, other: str) -> float:
    """From 1 to 21; WCAG asks for 3 of lines (1.4.11) and 4.5 of text (1.4.3)."""
    high, low = sorted(
        (sum(map(operator.mul, (0.2126, 0.7152, 0.0722), _light(colour))) for colour in (one, other)), reverse=True
    )
    return (high + 0.05) / (low + 0.05)
