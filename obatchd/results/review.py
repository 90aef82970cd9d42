"""A page for checking answers by eye: source and data side by side, values that are not in the source marked."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files
from random import Random
from typing import Any, BinaryIO

from obatchd.results.export import data_of, writing_text
from obatchd.results.page import beginning, chosen, ending, leaves, marked, pattern, shown
from obatchd.results.repeats import answers_of
from obatchd.results.rows import ResultSet, Row
from obatchd.results.table import as_cell
from obatchd.results.tally import Tally

_KEY_DIGITS = 24
_STYLE = """
article { grid-template-columns: 1fr 1fr } article.current { border-color: #2457a6; box-shadow: 0 0 0 1px #2457a6 }
#marks { position: sticky; top: 0; z-index: 1; margin: 0 -1.5rem; padding: .5rem 1.5rem; background: #fafafa;
  border-bottom: 1px solid #ddd; display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; align-items: baseline }
#marks[hidden] { display: none } #rate { font-weight: 600 }
kbd { border: 1px solid #bbb; border-radius: 3px; padding: 0 .3em }
.judge { float: right; display: none } #marks:not([hidden]) ~ article .judge { display: inline }
button { font: inherit; padding: 0 .6em; border: 1px solid #bbb; border-radius: 4px; background: #fff; cursor: pointer }
@media (max-width: 700px) { article { grid-template-columns: 1fr; gap: .8rem } }
button[value=right][aria-pressed=true] { background: #1d7a35; border-color: #1d7a35; color: #fff }
button[value=wrong][aria-pressed=true] { background: #b3261e; border-color: #b3261e; color: #fff }
"""
_LEGEND = """<p>Values that stand in the source are <mark>marked there</mark>; those that do not are
<span class="missing">red</span>.</p>
"""
_MARKS = """<div id="marks" hidden><span id="rate" role="status"></span>
<span><kbd>r</kbd> right, <kbd>w</kbd> wrong, and on to the next; <kbd>u</kbd> take the mark away; <kbd>j</kbd> next;
<kbd>k</kbd> back</span>
<button type="button" id="save">Save the marks as CSV</button></div>
"""
_BUTTONS = (
    '<span class="judge"><button type="button" value="right" aria-pressed="false">Right</button>'
    ' <button type="button" value="wrong" aria-pressed="false">Wrong</button></span>'
)


def write_review(source: ResultSet, count: int, target: BinaryIO, *, seed: int | None = None) -> Tally:
    """Write a page with ``count`` successes chosen at random; returns the tally of all rows.

    On it each answer can be marked as right or wrong; the browser keeps the marks of a job and shows their rate. Memory
    holds the chosen rows only. The same ``seed`` chooses the same rows.
    """
    tally = Tally()
    rows, answers = chosen(_successes(source, tally), count, Random(seed))
    tally.shown = len(rows), answers
    title = f"Review of {source.title}" + (f" ({source.job})" if source.job not in ("", source.title) else "")
    lines = [f"{len(rows)} of {answers:,} answers, chosen at random.", *tally.lines(source)]
    script = files("obatchd.results").joinpath("marks.js").read_text("utf-8")
    with writing_text(target) as page:
        legend = _LEGEND if any(data_of(row).found for row in rows) else ""
        page.write(beginning(title, lines, style=_STYLE, script=script) + legend + _MARKS)
        page.writelines(_article(row, tally.misses_json(source)) for row in rows)
        page.write(ending(script))
    return tally


def _successes(source: ResultSet, tally: Tally) -> Iterator[Row]:
    for row in source.rows():
        tally.add(row, data_of(row).problem)
        if row.succeeded:
            yield from answers_of(row)


def _article(row: Row, misses_json: bool) -> str:
    record = row.record
    source = str(record.get("full_prompt") or record.get("prompt") or "")
    parsed = data_of(row)
    about = " · ".join(str(record[key]) for key in ("model", "server") if record.get(key))
    found: list[str] = []
    if parsed.found:
        answer, found = _data_table(parsed.data, source)
    else:
        told = misses_json or parsed.problem is None  # a vector, say
        problem = f"<p>No data: {html.escape(parsed.problem or 'there is no text')}</p>" if told else ""
        answer = f'{problem}<div class="text">{html.escape(str(record.get("response", "")))}</div>'
    name = f"{row.name}[{record.get('index')}]" if row.choices else row.name
    # The browser keeps a mark for this very answer: other results may have the same ids, and their file the same name.
    key = sha256(json.dumps([name, source, record.get("response")]).encode()).hexdigest()[:_KEY_DIGITS]
    heading = f'<h2 data-key="{key}">{html.escape(name)} <small>{html.escape(about)}</small>{_BUTTONS}</h2>'
    source = f'<div class="source">{marked(source, found)}</div>'
    # The id as the marks are saved, and exports have it: a spreadsheet runs nothing in it.
    return f'<article data-id="{html.escape(as_cell(name))}">{heading}{source}<div>{answer}</div></article>\n'


def _data_table(data: Any, source: str) -> tuple[str, list[str]]:
    """The data as a table, and those of its values that occur in the source."""
    rows, found = [], []
    for path, value in leaves(data):
        text = shown(value)
        judged = bool(text.strip()) and not isinstance(value, bool)
        missing = judged and not re.search(pattern(text), source, re.IGNORECASE)
        if judged and not missing:
            found.append(text)
        cell = f'<span class="missing">{html.escape(text)}</span>' if missing else html.escape(text)
        rows.append(f"<tr><td>{html.escape(path)}</td><td>{cell}</td></tr>")
    return f"<table>{''.join(rows)}</table>", found
