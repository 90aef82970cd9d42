"""What may be sent to a terminal: the one place that reads the variables in which users say so.

Sources: no-color.org; bixense.com/clicolors; a dumb terminal has neither colours nor a cursor that moves (terminfo(5)).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO


def colours(environ: Mapping[str, str] = os.environ) -> bool | None:
    """Whether users want colours: never, always, or, with None, where the output is a terminal."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return False if environ.get("TERM") == "dumb" or environ.get("CLICOLOR") == "0" else None


def coloured(stream: TextIO) -> bool:
    """Whether text that is written to ``stream`` has colours."""
    wanted = colours()
    return stream.isatty() if wanted is None else wanted


def draws(stream: TextIO) -> bool:
    """Whether a line of ``stream`` can be drawn anew: it is a terminal whose cursor moves."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def clean(value: object, keep: str = "") -> str:
    """Text without control characters, which a drop's name may carry to deceive a terminal."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in str(value))
