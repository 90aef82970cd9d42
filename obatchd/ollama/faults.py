"""Every failure of an attempt is classified here, once.

The table follows what Ollama v0.24 was seen to answer (texts verbatim from its source and from live servers):

* ``request``: the request itself is at fault; another try would end the same way, so there is none.
* ``server``: the server is at fault; the request goes elsewhere and the server gets a strike.
* ``crash``: as ``server``, and what ran beside it fails with it; a request seen in crashes is tried alone.
* ``load``: the server could not load the model; the profile is tried elsewhere.
* ``answer``: the answer is no good (empty, aborted); it is tried again, and nobody gets a strike.
* ``nobody``: a restarting server or a full queue; the request waits and nobody gets a strike.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Fault(NamedTuple):
    """What went wrong in an attempt."""

    kind: str  # request, server, crash, load, answer or nobody
    code: str
    message: str


REQUEST, SERVER, CRASH, LOAD, ANSWER, NOBODY = "request", "server", "crash", "load", "answer", "nobody"

# Tried in order on the error text of a response; the first match decides.
_TEXTS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), kind, code)
    for pattern, kind, code in (
        (r"input length exceeds the context length|longer than the context length", REQUEST, "context_exceeded"),
        (r"server busy", NOBODY, "server_busy"),
        (r"runner process has terminated|llama-server process has terminated", CRASH, "runner_crash"),
        (r"error was encountered while running the model|model runner has unexpectedly stopped", CRASH, "runner_crash"),
        (r"runner process no longer running", CRASH, "runner_crash"),
        (r"requires more system memory|unable to load full model on gpu", LOAD, "does_not_fit"),
        (r"resource limitations|failed to allocate memory", LOAD, "does_not_fit"),
        (r"timed out waiting for llama runner|error starting runner", LOAD, "load_failed"),
        (r"invalid format|invalid json schema", REQUEST, "invalid_format"),
        (r"option \".*\" must be of type", REQUEST, "invalid_option"),
        (r"no input provided|template:", REQUEST, "bad_request"),
        (r"does not support", REQUEST, "not_supported"),
        (r"model ['\"].*['\"] not found", LOAD, "model_not_found"),
        (r"no slots available|unexpected server status", SERVER, "no_slot"),
    )
)


def from_response(status: int, text: str) -> Fault:
    """Classify an error answer: its HTTP status (200 for an error line inside a stream) and error text."""
    for pattern, kind, code in _TEXTS:
        if pattern.search(text):
            return Fault(kind, code, text)
    if status in (408, 429, 503):
        return Fault(NOBODY, "server_busy", text or f"the server answered {status}")
    if status in (401, 403):
        return Fault(LOAD, "forbidden", text or f"the server answered {status}")
    if 400 <= status < 500 and status != 499:
        return Fault(REQUEST, "bad_request", text or f"the server answered {status}")
    return Fault(SERVER, "server_error", text or f"the server answered {status}")


def connection_refused(detail: str) -> Fault:
    """No connection could be made: the server is down or restarting."""
    return Fault(NOBODY, "unreachable", f"the server cannot be reached ({detail})")


def connection_lost(detail: str) -> Fault:
    """The connection ended in the middle of an answer: the server died."""
    return Fault(CRASH, "connection_lost", f"the server closed the connection in the middle of the answer ({detail})")


def stalled(stall_s: float) -> Fault:
    """An answer that had begun stopped, while others at the same server went on."""
    return Fault(SERVER, "stalled", f"no token came for {stall_s:g} s, while other requests on the server went on")


def hung(reason: str) -> Fault:
    """The server as a whole did no work: as after a crash, any of its requests may be the cause."""
    return Fault(CRASH, "server_hung", reason)


def withdrawn(reason: str) -> Fault:
    """The server is taken away on purpose while it works."""
    return Fault(NOBODY, "server_withdrawn", f"{reason}; another one answers")


def out_of_time(limit_s: float) -> Fault:
    """The attempt ran into its total limit."""
    return Fault(SERVER, "timeout", f"the attempt took longer than {limit_s:.0f} s")


def invalid_format(reason: str) -> Fault:
    """What the request wants as ``format`` cannot be used."""
    return Fault(REQUEST, "invalid_format", reason)


def format_mismatch(reason: str, tries: int) -> Fault:
    """The answer is not what ``format`` asked for; the model was shown why and tried again where that could help."""
    return Fault(REQUEST, "format_mismatch", f"the answer does not fit the format after {tries} tries: {reason}")


def no_vision(model: str) -> Fault:
    """The request has images and its model would not see them: Ollama ignores them without a word."""
    return Fault(REQUEST, "not_supported", f"the model {model} cannot see images; use one with the capability vision")


def wrong_count(texts: int, vectors: int) -> Fault:
    """Another number of vectors than of texts: nobody can tell which is whose."""
    return Fault(ANSWER, "incomplete", f"the server made {vectors} vectors of {texts} texts")


def sources_off() -> Fault:
    """A request names sources, and nobody has fetched them."""
    return Fault(
        REQUEST, "context_off", "it names sources, and sources are off here: an administrator can enable [context]"
    )


def incomplete(done: bool, done_reason: str, text: str) -> Fault | None:
    """An answer with status 200 that is not a whole answer, or None if it is.

    ``done`` false is what Ollama sends when it aborts after 30 equal tokens in a row; an empty ``done_reason`` means
    the generation was aborted; ``load`` and ``unload`` mean that only the model was loaded or unloaded; no text
    at all is no answer.
    """
    if not done:
        return Fault(ANSWER, "incomplete", "the server ended the answer without finishing it (done is false)")
    if done_reason in ("load", "unload"):
        # A request without a prompt is refused before it gets here, so this is not the request's doing.
        return Fault(ANSWER, "unloaded", f"the server {done_reason}ed the model instead of answering")
    if done_reason not in ("stop", "length"):
        return Fault(ANSWER, "incomplete", f"the server ended the answer with done_reason {done_reason!r}")
    if not text.strip():
        if done_reason == "length":
            return Fault(
                REQUEST, "empty_response", "the token limit was used up before any text; raise max_response_tokens"
            )
        return Fault(ANSWER, "empty_response", "the answer is empty")
    return None
