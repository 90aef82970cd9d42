"""A page with the answers of two results side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence
from random import Random
from typing import Any, BinaryIO

from obatchd.results.answers import Parsed
from obatchd.results.asked import prompt_of, prompts_differ
from obatchd.results.compare import Comparison, Pair, same
from obatchd.results.export import data_of, writing_text
from obatchd.results.page import beginning, chosen, ending, leaves, shown
from obatchd.results.repeats import text_of
from obatchd.results.rows import Row
from obatchd.results.table import as_text

_STYLE = """
.sum { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere }
article { grid-template-columns: 1fr 1fr 1fr } h3 { font-size: .85rem; margin: 0 0 .3rem; color: #666 }
.source + h3 { margin-top: .8rem }
.wrong, .failed { color: #b3261e } .right { color: #1d7a35 } .wrong, .right { white-space: nowrap }
@media (max-width: 700px) { article { grid-template-columns: 1fr; gap: .8rem } .sum { font-size: 10px } }
#differ:checked ~ article.same { display: none } .differs { background: #fff3c4 }
"""
_CHOICE = '<input type="checkbox" id="differ"> <label for="differ">Only where the answers differ</label>.'
_LEGEND = ' Fields that differ are <span class="differs">yellow</span>.'


def write_page(
    comparison: Comparison, lines: Sequence[str], count: int, target: BinaryIO, *, seed: int | None = None
) -> None:
    """Write a page with up to ``count`` requests that are in both, chosen at random, in their order.

    Memory holds the chosen rows only. The same ``seed`` chooses the same rows.
    """
    joined = (pair for pair in comparison.pairs() if pair.a is not None and pair.b is not None)
    pairs, of = chosen(joined, count, Random(seed))
    names = comparison.titles()
    part = [f"{len(pairs):,} of {of:,} requests, chosen at random."] if len(pairs) < of else []
    with writing_text(target) as page:
        legend = _LEGEND if any(all(row and data_of(row).found for row in pair.rows) for pair in pairs) else ""
        page.write(f"{beginning(f'{names[0]} and {names[1]}', [*lines, *part], style=_STYLE)}{_CHOICE}{legend}\n")
        page.writelines(_article(comparison, pair, names) for pair in pairs)
        page.write(ending())


def _article(comparison: Comparison, pair: Pair, names: tuple[str, str]) -> str:
    parsed = tuple(data_of(row) if row else Parsed() for row in pair.rows)
    alike = pair.both and bool(same(pair, parsed))
    rights = comparison.right(pair) if comparison.gold is not None else None
    heading = html.escape(pair.any.name)
    if rights is not None:
        known = as_text(comparison.known(pair))
        heading += f" <small>{html.escape(str(comparison.gold))}: {html.escape(known)}</small>"
    columns = [_prompts(pair, names)]
    for side, (row, name) in enumerate(zip(pair.rows, names, strict=True)):
        assert row is not None
        model = html.escape(" · ".join(filter(None, [name, str(row.record.get("model") or "")])))
        judged = _judgement(rights[side]) if rights is not None else ""
        columns.append(f"<div><h3>{model}{judged}</h3>{_answer(row, parsed[side], parsed[1 - side])}</div>")
    return f'<article class="{"same" if alike else "other"}"><h2>{heading}</h2>{"".join(columns)}</article>\n'


def _prompts(pair: Pair, names: tuple[str, str]) -> str:
    """The prompt; where both were asked another one, each under the name of its side."""
    first, second = map(prompt_of, pair.rows)
    if not prompts_differ(*pair.rows):
        return f'<div class="source">{html.escape(first or second)}</div>'
    told = (
        f'<h3>Prompt of {html.escape(name)}</h3><div class="source">{html.escape(prompt)}</div>'
        for name, prompt in zip(names, (first, second), strict=True)
    )
    return f"<div>{''.join(told)}</div>"


def _judgement(how: str) -> str:
    return ' <span class="right">✓ right</span>' if how else ' <span class="wrong">✗ wrong</span>'


def _answer(row: Row, parsed: Parsed, other: Parsed) -> str:
    if not row.succeeded:
        return f'<div class="failed">{html.escape(row.failure)}</div>'
    if not parsed.found:
        return f'<div class="text">{html.escape(text_of(row))}</div>'
    others: dict[str, Any] = dict(leaves(other.data)) if other.found else {}
    cells = []
    for path, value in leaves(parsed.data):
        text = html.escape(shown(value))
        differs = other.found and (path not in others or shown(others[path]) != shown(value))
        cells.append(f"<tr><td>{html.escape(path)}</td><td>{_yellow(text) if differs else text}</td></tr>")
    return f"<table>{''.join(cells)}</table>"


def _yellow(text: str) -> str:
    return f'<span class="differs">{text or "&nbsp;"}</span>'
