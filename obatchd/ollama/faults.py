"""The meaning of every failure, once: whose fault it is, its code, and the advice to the user whose request fails.

``Cause`` is the table. Prompts, supervision, downloads and burn-ins all classify Ollama's error answers by its words,
which are those of Ollama 0.24 and of 0.30 to 0.33, whose engine is llama-server: verbatim from the sources of both and
from live servers. Causes without words are those that obatchd finds by itself. The kinds are:

* ``request``: the request itself is at fault; another try would end the same way, so there is none.
* ``server``: the server is at fault; the request goes elsewhere and the server gets a strike.
* ``crash``: as ``server``, and what ran beside it fails with it; a request seen in crashes is tried alone.
* ``load``: the server could not load the model; the profile is tried elsewhere.
* ``answer``: the answer is no good (empty, aborted); it is tried again, and nobody gets a strike.
* ``nobody``: a restarting server or a full queue; the request waits and nobody gets a strike.
* ``foreign``: not Ollama answered, but a proxy in front of it or something else at its address. That is no verdict on
  the request, which waits; the server gets a strike, and less and less until it answers.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum
from typing import NamedTuple

import msgspec

from obatchd.ollama import foreign


class Fault(NamedTuple):
    """What went wrong in an attempt."""

    kind: str  # request, server, crash, load, answer, nobody or foreign
    code: str
    message: str


REQUEST, SERVER, CRASH, LOAD, ANSWER, NOBODY = "request", "server", "crash", "load", "answer", "nobody"
FOREIGN = "foreign"

RETRY = "retry the job with: obatchctl retry JOB"
_MEND = "mend the request as the message says, and drop it again"
_MORE = "raise max_response_tokens, or look at the prompt"
_LOOK = "look at the servers with: obatchctl status, then retry the job"
_ACCESS = "ask an administrator for access: remote_token in [servers], then retry the job"
_LONGEST_REPEAT = 2000  # characters at the end of an answer that are looked at
_REPEATED = re.compile(r"(.{1,60}?)\1{29}\s*$", re.DOTALL)  # Ollama ends an answer at 30 equal tokens (llm/server.go)
# Of msgspec over an answer that is not the wanted JSON: bytes that are no UTF-8, too, and arrays in arrays in arrays.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Cause(Enum):
    """A cause of failures: its kind, its code, the advice, then the words and statuses of answers that show it.

    The words are a regular expression for any part of the error text, whatever its case. The first cause with words in
    the text decides; where there is none, the first with the status does.
    """

    def __init__(self, kind: str, code: str, advice: str, words: str = "", statuses: Collection[int] = ()) -> None:
        self.kind = kind
        self.code = code
        self.advice = advice
        self.words = re.compile(words, re.IGNORECASE | re.DOTALL) if words else None
        self.statuses = statuses

    def fault(self, message: str) -> Fault:
        return Fault(self.kind, self.code, message)

    # Told by Ollama.

    CONTEXT_EXCEEDED = (
        REQUEST, "context_exceeded", "give the request a larger context_length, or shorten the prompt",
        r"input length exceeds the context length|longer than the context length|exceeds maximum context length"
        r"|exceed_context_size_error|exceeds the available context|larger than the max context size",  # of llama-server
    )  # fmt: skip
    SERVER_BUSY = NOBODY, "server_busy", RETRY, r"server busy|^loading model$", (408, 429, 503)
    RUNNER_DIED = (  # while it worked, for whatever reason
        CRASH, "runner_crash", RETRY,
        r"error was encountered while running the model|model runner has unexpectedly stopped"
        # Of 0.33, whose calls to llama-server broke off; a call to /v2/ is one to a registry.
        r"|error reading (llama-server|embed)|(post|get) \"http://127\.0\.0\.1:\d+/(?!v2/)|read tcp 127\.0\.0\.1:\d+->",
    )  # fmt: skip
    DOES_NOT_FIT = (  # which a runner may tell with its last words
        LOAD, "does_not_fit", "use a smaller model, a smaller context_length, or a [[servers.group]] of several GPUs",
        r"requires more system memory|unable to load full model on gpu|resource limitations|failed to allocate"
        r"|(cuda|hip)Malloc failed|out[ -]of[ -](device[ -])?memory|(not enough|insufficient) memory",
    )  # fmt: skip
    RUNNER_GONE = (
        CRASH, "runner_crash", RETRY,
        r"(runner|llama-server) process (has terminated|no longer running)|^connection refused$",
    )  # fmt: skip
    LOAD_FAILED = (
        LOAD, "load_failed", RETRY,
        r"timed out waiting for llama.(runner|server)|error starting (runner|llama-server)"
        r"|llama-server startup failed|llama-server binary not found",
    )  # fmt: skip
    INVALID_FORMAT = (
        REQUEST, "invalid_format", "mend the JSON Schema as the message says, and drop it again",
        r"invalid format:|invalid json schema"
        # Of llama-server:
        r"|failed to (parse grammar|initialize samplers)|field 'json_schema'|json schema conversion"
        r"|empty grammar stack",
    )  # fmt: skip
    INVALID_OPTION = (
        REQUEST, "invalid_option", "mend the option that the message names, and drop it again",
        r"option \".*\" must be of type",
    )  # fmt: skip
    NO_INPUT = REQUEST, "bad_request", _MEND, r"no input provided|template:|^decode webp image"
    NOT_SUPPORTED = (
        REQUEST, "not_supported", "use a model with the capability that the message names",
        r"does not support|(image|audio|video) input is not supported", (501,),
    )  # fmt: skip
    MODEL_NOT_FOUND = (
        LOAD, "model_not_found", "check the model's name, or pull it with: obatchctl models pull NAME",
        r"model ['\"].*['\"] not found|file does not exist|pull model manifest: .*not found",
    )  # fmt: skip
    NO_SPACE = LOAD, "no_space", RETRY, r"no space left"
    NO_SLOT = SERVER, "no_slot", RETRY, r"no slots available|unexpected server status"
    VECTORS_FAILED = (  # with 400 by 0.33
        SERVER, "server_error", RETRY,
        r"^server not responding$|embedding contains nan|unmarshal embedding|empty embedding|^(de)?tokenize error",
    )  # fmt: skip
    FORBIDDEN = LOAD, "forbidden", _ACCESS, "", (401, 403)
    BAD_REQUEST = REQUEST, "bad_request", _MEND, "", (400, 422)
    # Statuses that Ollama gives only with words that are above. 499: the client went away.
    NOT_OLLAMA = FOREIGN, "not_ollama", _LOOK, "", (*range(300, 400), *range(402, 499), 502, 504, *range(520, 530))
    SERVER_ERROR = SERVER, "server_error", RETRY  # anything else

    # Found by obatchd.

    NO_ACCESS = FOREIGN, "forbidden", _ACCESS
    UNREACHABLE = NOBODY, "unreachable", RETRY
    CONNECTION_LOST = CRASH, "connection_lost", RETRY
    STALLED = SERVER, "stalled", _LOOK
    SERVER_HUNG = CRASH, "server_hung", _LOOK
    SERVER_WITHDRAWN = NOBODY, "server_withdrawn", RETRY
    HOST_LOST = NOBODY, "host_lost", RETRY
    TIMEOUT = (
        SERVER, "timeout",
        "raise request_timeout_s or request_total_s in [dispatch] or lower max_response_tokens, then retry",
    )  # fmt: skip
    FORMAT_MISMATCH = (
        REQUEST, "format_mismatch",
        "look at the answer in errors.jsonl: simplify the schema or the task, or use a larger model",
    )  # fmt: skip
    CONTEXT_OFF = REQUEST, "context_off", "ask an administrator to enable [context], or leave urls and files out"
    TOO_LONG = (
        REQUEST, "answer_too_long",
        "lower max_response_tokens, ask for less text at once, or leave large files and images out of the prompt",
    )  # fmt: skip
    INCOMPLETE = ANSWER, "incomplete", RETRY
    UNLOADED = ANSWER, "unloaded", RETRY
    EMPTY_RESPONSE = ANSWER, "empty_response", _MORE
    NO_TOKENS_LEFT = REQUEST, "empty_response", _MORE


ADVICE = {cause.code: cause.advice for cause in Cause}


class _Inner(msgspec.Struct):
    """An error as llama-server words it."""

    message: str = ""


class _Body(msgspec.Struct):
    error: str | _Inner | None = None


class _Whole(_Body, forbid_unknown_fields=True):
    """All that Ollama's error answers have."""

    signin_url: str | None = None


_body = msgspec.json.Decoder(_Body)
_whole = msgspec.json.Decoder(_Whole)


def from_body(status: int, body: bytes, url: str, location: str = "") -> Fault:
    """Classify an error answer of ``url``: its HTTP status and body, and the address that a redirect names."""
    page = body.decode("utf-8", "replace").strip()
    # Nothing at all with 500 is Ollama's, of a request over which its own code panicked (gin's Recovery).
    words = "" if status == 500 and not page else _words(page)
    cause = None if words is None else _cause(status, words, page)
    if cause is None or (page and cause.words is None and not _has_no_more(page)):
        cause = Cause.NO_ACCESS if status in Cause.FORBIDDEN.statuses else Cause.NOT_OLLAMA
    if cause.kind == FOREIGN:
        return cause.fault(foreign.words(url, status, words or page, location))
    return _fault(cause, status, words or "")


def from_response(status: int, text: str) -> Fault:
    """Classify an error of Ollama's: its HTTP status (200 for an error line inside a stream) and error text."""
    words = _unpacked(text)
    return _fault(_cause(status, words, text), status, words)


def _cause(status: int, words: str, whole: str) -> Cause:
    # Its words first, then the whole, which may say what type of error it is.
    told = ((cause, text) for text in (words, whole) for cause in Cause)
    cause = next((cause for cause, text in told if cause.words is not None and cause.words.search(text)), None)
    return cause or next((cause for cause in Cause if status in cause.statuses), Cause.SERVER_ERROR)


def _fault(cause: Cause, status: int, text: str) -> Fault:
    return cause.fault(text or f"the server answered {status}")


def _has_no_more(page: str) -> bool:
    """Whether an error answer has nothing that Ollama's have not, as those of other programs do (status, path …)."""
    try:
        _whole.decode(page)
    except UNREADABLE:
        return False
    return True


def _words(page: str) -> str | None:
    """The words of an error answer of Ollama's, ``{"error": …}``; None where it is somebody else's."""
    if not page.startswith("{"):
        return None
    try:
        error = _body.decode(page).error
    except UNREADABLE:
        return None
    return error.message if isinstance(error, _Inner) else None if error is None else _unpacked(error)


def _unpacked(text: str) -> str:
    """Since 0.30 the words of an error may be llama-server's own answer, in JSON once more."""
    words = _words(text)
    return text if words is None else words


def connection_refused(detail: str) -> Fault:
    return Cause.UNREACHABLE.fault(f"the server cannot be reached ({detail})")


def connection_lost(detail: str) -> Fault:
    return Cause.CONNECTION_LOST.fault(f"the server closed the connection in the middle of the answer ({detail})")


def elsewhere(url: str, page: bytes) -> Fault:
    """An answer of ``url`` with status 200 that is not Ollama's from its beginning."""
    return Cause.NOT_OLLAMA.fault(foreign.words(url, 200, page.decode("utf-8", "replace")))


def not_ollama(reason: str) -> Fault:
    """An answer with status 200 whose body begins as one of Ollama's and does not go on so."""
    return Cause.SERVER_ERROR.fault(f"the answer is not one of Ollama's: {reason}")


def stalled(stall_s: float) -> Fault:
    """An answer that had begun stopped, while others at the same server went on."""
    return Cause.STALLED.fault(f"no token came for {stall_s:g} s, while other requests on the server went on")


def hung(reason: str) -> Fault:
    """The server as a whole did no work: as after a crash, any of its requests may be the cause."""
    return Cause.SERVER_HUNG.fault(reason)


def out_of_time(limit_s: float) -> Fault:
    return Cause.TIMEOUT.fault(f"the attempt took longer than {limit_s:.0f} s")


def incomplete(done: bool, done_reason: str, text: str) -> Fault | None:
    """An answer with status 200 that is not a whole answer, or None if it is.

    ``done`` false is what Ollama sends when it aborts after 30 equal tokens in a row; an empty ``done_reason`` means
    the generation was aborted; ``load`` and ``unload`` mean that only the model was loaded or unloaded; no text
    at all is no answer.
    """
    if not done and _REPEATED.search(text[-_LONGEST_REPEAT:]):
        return Cause.INCOMPLETE.fault(
            "the model wrote the same piece of text again and again, and Ollama ends such an answer: try another "
            "prompt, a higher temperature or repeat_penalty"
        )
    if not done:
        return Cause.INCOMPLETE.fault("the server ended the answer without finishing it (done is false)")
    if done_reason in ("load", "unload"):
        # A request without a prompt is refused before it gets here, so this is not the request's doing.
        return Cause.UNLOADED.fault(f"the server {done_reason}ed the model instead of answering")
    if done_reason not in ("stop", "length"):
        return Cause.INCOMPLETE.fault(f"the server ended the answer with done_reason {done_reason!r}")
    if text.strip():
        return None
    if done_reason == "length":
        return Cause.NO_TOKENS_LEFT.fault("the token limit was used up before any text; raise max_response_tokens")
    return Cause.EMPTY_RESPONSE.fault("the answer is empty")
