"""In a terminal obatchd speaks to a person; pipes and the journal get its events as they are."""

from __future__ import annotations

import logging
import os
import pty
import re
import runpy
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from obatchd import spoken
from obatchd.cli.views.status import job_state
from obatchd.documents.alarms import JobDone

TEXTS = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "texts.py"))
_SPEAK = """
from obatchd import log
log.configure("info")
logger = log.get("obatchd.test")
logger.info("ready", servers=4, jobs=0, inbox="/srv/batch/inbox", command="obatchctl submit FILE --wait")
logger.info("server_state", server="gpu0", gpu="", old="stopped", new="starting", reason="")
logger.info("server_state", server="gpu0", gpu="", old="starting", new="ready", reason="")
logger.info("job_indexed", job="20261128-101500-abcd", requests=1)
logger.info("job_done", job="20261128-101500-abcd", requests=40, succeeded=38, failed=2, wall_s=125.0, ending="done")
logger.warning("health_missed", server="gpu0", misses=1, reason="no\\x1b[31m answer")
"""


_WATCH = """
import click
from pathlib import Path
from obatchd import terminal
from obatchd.cli.command import Invocation
from obatchd.cli.views import waiting
looks = iter([{"state": "ready"}])
def look():
    for document in looks:
        return document
    raise KeyboardInterrupt
waiting.line_anew("50 %")
with click.Context(click.Command("watch")) as context:
    context.color = terminal.colours()  # as the command line has it
    view = lambda document: [click.style(document["state"], fg="green")]
    waiting.watch(Invocation(Path("/"), False), 0.0, look, view)
"""


def said(environment: dict[str, str], *, terminal: bool = True, code: str = _SPEAK) -> str:
    """What a program writes to its standard output and error, which are a terminal or a pipe."""
    parent, child = pty.openpty() if terminal else os.pipe()
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    program = subprocess.Popen([sys.executable, "-c", code], stdout=child, stderr=child, env=kept | environment)
    os.close(child)
    parts = []
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # EIO: the last one has closed the terminal
            break
        if not part:
            break
        parts.append(part)
    os.close(parent)
    assert program.wait() == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


def test_a_person_reads_one_line_that_says_ready_where_to_drop_and_what_to_type() -> None:
    lines = [line[10:] for line in said({"TERM": "xterm", "NO_COLOR": "1"}).splitlines()]
    assert lines == [
        "Ready. Move files of prompts into /srv/batch/inbox, or type in another terminal:  "
        "obatchctl submit FILE --wait",
        "Server gpu0 is ready",
        "Job 20261128-101500-abcd: 1 request",
        "Job 20261128-101500-abcd is done: 38 answered, 2 failed, in 2 min 5 s",
        "Server gpu0 does not answer: no [31m answer",
    ]


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "0"}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": "xterm", "CLICOLOR": "0"}, False),
        ({"TERM": "xterm", "CLICOLOR": "1"}, True),
        ({"TERM": "dumb", "CLICOLOR_FORCE": "1"}, True),
        ({"TERM": "dumb", "CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_those_that_the_user_wants(environment: dict[str, str], coloured: bool) -> None:
    assert ("\x1b[" in said(environment)) == coloured


@pytest.mark.parametrize("environment", [{}, {"JOURNAL_STREAM": "8:1"}])
def test_a_pipe_gets_events_though_the_shell_of_a_terminal_inherits_the_journals_variable(
    environment: dict[str, str],
) -> None:
    lines = said(environment, terminal=False).splitlines()
    assert len(lines) == 6
    assert re.match(r"time=\S+Z level=info logger=test event=ready servers=4 jobs=0 inbox=/srv/batch/inbox ", lines[0])


def test_a_server_that_is_tried_again_is_down() -> None:
    fields = {"server": "far", "old": "starting", "new": "backoff", "reason": "no answer (next try in 4 s)"}
    assert spoken.told("server_state", fields) == "Server far is down: no answer (next try in 4 s)"


def test_debugging_in_a_terminal_shows_every_field() -> None:
    assert "event=ready servers=4" in said(
        {"TERM": "xterm"}, code=_SPEAK.replace('configure("info")', 'configure("debug")')
    )


@pytest.mark.parametrize(
    ("environment", "drawn", "coloured"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_who_wants_no_colours_sees_lines_drawn_anew_and_a_dumb_terminal_does_not(
    environment: dict[str, str], drawn: bool, coloured: bool
) -> None:
    shown = said(environment, code=_WATCH)
    assert ("\x1b[H" in shown, "\r\x1b[K50 %" in shown) == (drawn, drawn)
    assert ("\x1b[32mready\x1b[0m" in shown, "ready" in shown) == (coloured, True)


def test_a_defect_is_told_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    handler = spoken.Handler(sys.stderr)
    try:
        raise ValueError("spilt")
    except ValueError as error:
        exc_info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("obatchd", logging.ERROR, "", 0, "event=defect", (), exc_info)
    record.__dict__ |= {"event": "defect", "fields": {"task": "reload"}}
    handler.handle(record)
    first, *trace = capsys.readouterr().err.splitlines()
    assert "A part of obatchd failed (reload)" in first and trace[-1] == "ValueError: spilt"


def test_every_event_has_words_and_the_words_name_its_fields_alone() -> None:
    found = [event for event in TEXTS["events"]() if event.level != "debug"]
    exact = {name for event in found for name in event.names if "*" not in name}
    unknown, wanting, silent, seen = [], [], [], set()
    for event in found:
        assert event.names, event.place
        for name in event.names:
            made = {key for key in spoken.WORDS.keys() - exact if re.fullmatch(name.replace("*", ".*"), key)}
            known = made if "*" in name else {name} & spoken.WORDS.keys()
            unknown += [] if known else [(event.place, name)]
            seen |= known
            for key in known:
                words = spoken.WORDS[key]
                named = {field for _, field, _, _ in string.Formatter().parse(words) if field}
                wanting += [(event.place, key, named - event.fields)] if named - event.fields else []
                silent += [(event.place, key)] if not words and event.level != "info" else []
    assert (unknown, wanting, silent) == ([], [], [])
    assert set(spoken.WORDS) - seen == set(), "words of events that there are no more"


def test_the_end_of_a_job_has_the_word_that_obatchctl_jobs_has() -> None:
    fields = {"requests": 2, "succeeded": 0, "failed": 2, "cancelled": 0, "expired": 0}
    for changed, words in (
        ({}, "failed: 0 answered, 2 failed"),
        ({"failed": 1, "succeeded": 1}, "is done: 1 answered, 1 failed"),
        ({"failed": 1, "cancelled": 1}, "was cancelled: 0 answered, 1 failed"),
        ({"failed": 1, "expired": 1}, "expired: 0 answered, 1 failed"),
    ):
        job: dict[str, Any] = fields | changed
        alarm = JobDone(**job, job="x", owner=1, wall_s=3.0)
        word = alarm.ending
        told = spoken.told("job_done", job | {"job": "x", "wall_s": 3.0, "ending": word})
        assert told == f"Job x {words}, in 3 s"
        assert job_state(job | {"state": "done"}) == word
        assert alarm.words.startswith(f"job x {words.partition(':')[0]}: ")


def test_an_event_that_lacks_a_value_is_told_all_the_same() -> None:
    fields = {"server": "far", "model": "m", "context_length": None, "slots": None, "load_s": None}
    assert spoken.told("profile_loaded", fields) == "Server far has loaded m in –: –, context –"
