"""Pages that stand alone: one file, nothing loaded, no script but our own, however the answers in it are meant."""

from __future__ import annotations

import html
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from operator import itemgetter
from random import Random
from typing import Any, TypeVar

_T = TypeVar("_T")
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #1c1c1c; background: #fafafa }
h1 { font-size: 1.25rem } .sum { white-space: pre-wrap; color: #555 }
article { display: grid; gap: 0 1.5rem; margin: 1rem 0; padding: .8rem 1rem;
  background: #fff; border: 1px solid #ddd; border-radius: 6px; scroll-margin-top: 4rem }
h2 { grid-column: 1 / -1; font-size: .95rem; margin: 0 0 .5rem } h2 small { font-weight: normal; color: #666 }
.source { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 32rem; overflow-y: auto }
table { border-collapse: collapse; width: 100% }
td { vertical-align: top; padding: .15rem .4rem; border-top: 1px solid #eee }
td:first-child { color: #666; white-space: nowrap; width: 1%; padding-right: 1.2rem }
td:last-child { overflow-wrap: anywhere; white-space: pre-wrap }
mark { background: #d9f2d9; padding: 0 } .missing { background: #ffd9d6 }
.text { white-space: pre-wrap; overflow-wrap: anywhere }
"""


def beginning(title: str, lines: Sequence[str], *, style: str = "", script: str = "") -> str:
    """Everything before the articles.

    The policy lets no script run but ``script``, by its SHA-256 (https://www.w3.org/TR/CSP3/#grammardef-hash-source):
    answers and prompts come from models and strangers.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        policy += f"; script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
    head = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head><body>
<h1>{html.escape(title)}</h1>
<p class="sum">{html.escape(chr(10).join(lines))}</p>
"""
    return head


def ending(script: str = "") -> str:
    """Everything behind them."""
    return (f"<script>{script}</script>\n" if script else "") + "</body></html>\n"


def chosen(items: Iterable[_T], count: int, randomness: Random) -> tuple[list[_T], int]:
    """Up to ``count`` of the items at random, in their order, and how many there are. Memory holds the chosen ones."""
    kept: list[tuple[int, _T]] = []
    seen = 0
    for seen, item in enumerate(items, start=1):
        if len(kept) < count:
            kept.append((seen, item))
        elif (place := randomness.randrange(seen)) < count:
            kept[place] = (seen, item)
    return [item for _, item in sorted(kept, key=itemgetter(0))], seen


def leaves(data: Any) -> Iterator[tuple[str, Any]]:
    """Every plain value in the order of the document, with its path. Deep ones must not overflow."""
    waiting: list[tuple[str, Any]] = [("", data)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting += [(f"{path}.{key}" if path else str(key), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list) and value:
            waiting += [(f"{path}[{place}]", inner) for place, inner in reversed([*enumerate(value, start=1)])]
        else:
            yield path, value if not isinstance(value, dict | list) else ""


def shown(value: Any) -> str:
    """A plain value as text."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def marked(source: str, values: list[str]) -> str:
    """The source as HTML, with every value of the data marked where it stands."""
    words = sorted({value.strip() for value in values}, key=len, reverse=True)
    if not words:
        return html.escape(source)
    expression = "|".join(map(pattern, words))
    parts, end = [], 0
    for match in re.finditer(expression, source, re.IGNORECASE):
        parts += [html.escape(source[end : match.start()]), f"<mark>{html.escape(match[0])}</mark>"]
        end = match.end()
    return "".join([*parts, html.escape(source[end:])])


def pattern(value: str) -> str:
    """Finds ``value`` as whole words, whatever the spaces between them."""
    words = r"\s+".join(map(re.escape, value.split()))
    return rf"(?<!\w){words}(?!\w)"
