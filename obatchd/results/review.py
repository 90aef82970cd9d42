"""A page for checking answers by eye: source and data side by side, values that are not in the source marked."""

from __future__ import annotations

import html
import random
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from obatchd.results.export import data_of, writing_text
from obatchd.results.rows import ResultSet, Row
from obatchd.results.tally import Tally

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #1c1c1c; background: #fafafa }
h1 { font-size: 1.25rem } .sum { white-space: pre-wrap; color: #555 }
article { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.5rem; margin: 1rem 0; padding: .8rem 1rem;
  background: #fff; border: 1px solid #ddd; border-radius: 6px }
h2 { grid-column: 1 / 3; font-size: .95rem; margin: 0 0 .5rem } h2 small { font-weight: normal; color: #666 }
.source { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 32rem; overflow-y: auto }
table { border-collapse: collapse; width: 100% }
td { vertical-align: top; padding: .15rem .4rem; border-top: 1px solid #eee }
td:first-child { color: #666; white-space: nowrap } td:last-child { overflow-wrap: anywhere; white-space: pre-wrap }
mark { background: #d9f2d9; padding: 0 } .missing { background: #ffd9d6 }
.text { color: #8a4b00; white-space: pre-wrap }
"""
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head><body>
<h1>{title}</h1>
<p class="sum">{sum}</p>
<p>Values that stand in the source are <mark>marked there</mark>; those that do not are
<span class="missing">red</span>.</p>
"""


def write_review(source: ResultSet, count: int, target: BinaryIO, *, seed: int | None = None) -> Tally:
    """Write a page with ``count`` successes chosen at random; returns the tally of all rows.

    Memory holds the chosen rows only. The same ``seed`` chooses the same rows.
    """
    tally = Tally()
    chosen = _choose(source, count, random.Random(seed), tally)
    title = f"Review of {source.job or source.path}"
    lines = [f"{len(chosen)} of {tally.outcomes['succeeded']:,} answers, chosen at random.", *tally.lines(source)]
    with writing_text(target) as page:
        page.write(_HEAD.format(title=html.escape(title), style=_STYLE, sum=html.escape("\n".join(lines))))
        page.writelines(map(_article, chosen))
        page.write("</body></html>\n")
    return tally


def _choose(source: ResultSet, count: int, randomness: random.Random, tally: Tally) -> list[Row]:
    """A reservoir sample of the successes, in their own order."""
    chosen: list[tuple[int, Row]] = []
    seen = 0
    for row in source.rows():
        tally.add(row, data_of(row).problem)
        if not row.succeeded:
            continue
        seen += 1
        if len(chosen) < count:
            chosen.append((seen, row))
        elif (place := randomness.randrange(seen)) < count:
            chosen[place] = (seen, row)
    return [row for _, row in sorted(chosen, key=lambda pair: pair[0])]


def _article(row: Row) -> str:
    record = row.record
    source = str(record.get("full_prompt") or record.get("prompt") or "")
    parsed = data_of(row)
    about = " · ".join(str(record[key]) for key in ("model", "server") if record.get(key))
    found: list[str] = []
    if parsed.found:
        answer, found = _data_table(parsed.data, source)
    else:
        problem = f"<p>No data: {html.escape(parsed.problem or 'there is no text')}</p>"
        answer = f'{problem}<div class="text">{html.escape(str(record.get("response", "")))}</div>'
    heading = f"<h2>{html.escape(row.name)} <small>{html.escape(about)}</small></h2>"
    return f'<article>{heading}<div class="source">{_marked(source, found)}</div><div>{answer}</div></article>\n'


def _data_table(data: Any, source: str) -> tuple[str, list[str]]:
    """The data as a table, and those of its values that occur in the source."""
    rows, found = [], []
    for path, value in _leaves(data):
        text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        judged = bool(text.strip()) and not isinstance(value, bool)
        missing = judged and not re.search(_pattern(text), source, re.IGNORECASE)
        if judged and not missing:
            found.append(text)
        cell = f'<span class="missing">{html.escape(text)}</span>' if missing else html.escape(text)
        rows.append(f"<tr><td>{html.escape(path)}</td><td>{cell}</td></tr>")
    return f"<table>{''.join(rows)}</table>", found


def _leaves(data: Any) -> Iterator[tuple[str, Any]]:
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


def _pattern(value: str) -> str:
    """Finds ``value`` as whole words, whatever the spaces between them."""
    words = r"\s+".join(map(re.escape, value.split()))
    return rf"(?<!\w){words}(?!\w)"


def _marked(source: str, values: list[str]) -> str:
    """The source as HTML, with every value of the data marked where it stands."""
    words = sorted({value.strip() for value in values}, key=len, reverse=True)
    if not words:
        return html.escape(source)
    pattern = "|".join(map(_pattern, words))
    parts, end = [], 0
    for match in re.finditer(pattern, source, re.IGNORECASE):
        parts += [html.escape(source[end : match.start()]), f"<mark>{html.escape(match[0])}</mark>"]
        end = match.end()
    return "".join([*parts, html.escape(source[end:])])
