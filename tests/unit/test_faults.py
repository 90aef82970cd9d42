"""Who is at fault: every error that Ollama is known to give, verbatim where a live server was seen to give it."""

from __future__ import annotations

import pytest

from obatchd.ollama import faults
from obatchd.ollama.faults import ANSWER, CRASH, LOAD, NOBODY, REQUEST, SERVER

TABLE = [
    # 400: the request
    (400, "unexpected EOF", REQUEST, "bad_request"),
    (400, "missing request body", REQUEST, "bad_request"),
    (400, "top_logprobs must be between 0 and 20", REQUEST, "bad_request"),
    (400, '"tiny64" does not support thinking', REQUEST, "not_supported"),
    (400, '"tiny64" does not support chat', REQUEST, "not_supported"),
    (400, "registry.ollama.ai/library/tiny:latest does not support tools", REQUEST, "not_supported"),
    (400, "the input length exceeds the context length", REQUEST, "context_exceeded"),
    (400, "the prompt is longer than the context length currently available", REQUEST, "context_exceeded"),
    (400, "invalid model name", REQUEST, "bad_request"),
    (400, 'time: missing unit in duration "-1"', REQUEST, "bad_request"),
    # 500, but the request
    (500, 'invalid format: "\\"xml\\""; expected "json" or a valid JSON Schema object', REQUEST, "invalid_format"),
    (500, "invalid JSON schema in format", REQUEST, "invalid_format"),
    (500, 'option "temperature" must be of type float32', REQUEST, "invalid_option"),
    (500, "no input provided", REQUEST, "bad_request"),
    (500, 'template: :1:3: executing "" at <.Messages>: error calling index', REQUEST, "bad_request"),
    # the model
    (404, "model 'nope' not found", LOAD, "model_not_found"),
    (404, 'model "nope" not found, try pulling it first', LOAD, "model_not_found"),
    # not allowed here
    (403, "", LOAD, "forbidden"),
    (401, "unauthorized", LOAD, "forbidden"),
    # busy
    (503, "server busy, please try again.  maximum pending requests exceeded", NOBODY, "server_busy"),
    (503, "", NOBODY, "server_busy"),
    (429, "", NOBODY, "server_busy"),
    # loading
    (500, "timed out waiting for llama runner to start - progress 0.35 - ", LOAD, "load_failed"),
    (500, "error starting runner: exec format error", LOAD, "load_failed"),
    (500, "model requires more system memory (9.1 GiB) than is available (4.0 GiB)", LOAD, "does_not_fit"),
    (500, "unable to load full model on GPU", LOAD, "does_not_fit"),
    (500, "model failed to load, this may be due to resource limitations or an internal error", LOAD, "does_not_fit"),
    (500, "failed to allocate memory for model", LOAD, "does_not_fit"),
    # the runner died
    (500, "llama runner process has terminated: exit status 2", CRASH, "runner_crash"),
    (500, "llama-server process has terminated: signal: killed", CRASH, "runner_crash"),
    (500, "llama runner process no longer running: 1 GGML_ASSERT", CRASH, "runner_crash"),
    (500, "an error was encountered while running the model: unexpected EOF", CRASH, "runner_crash"),
    (500, "an error was encountered while running the model: CUDA error: illegal memory access", CRASH, "runner_crash"),
    (500, "model runner has unexpectedly stopped, this may be due to resource limitations", CRASH, "runner_crash"),
    # the server
    (500, "no slots available after 10 retries", SERVER, "no_slot"),
    (500, "unexpected server status: llm server loading model", SERVER, "no_slot"),
    (500, "error parsing tool call: raw='{', err=unexpected end of JSON input", SERVER, "server_error"),
    (502, "", SERVER, "server_error"),
    (499, "request canceled", SERVER, "server_error"),
    # the text of a forwarded 4xx of the runner
    (400, "failed to parse grammar", REQUEST, "bad_request"),
    (422, "something new", REQUEST, "bad_request"),
    (500, "something new", SERVER, "server_error"),
]


@pytest.mark.parametrize(("status", "text", "kind", "code"), TABLE, ids=[f"{row[0]}-{row[1][:40]}" for row in TABLE])
def test_an_error_answer_is_blamed_on_whom_the_table_says(status: int, text: str, kind: str, code: str) -> None:
    fault = faults.from_response(status, text)
    assert (fault.kind, fault.code) == (kind, code)
    assert fault.message == text or (not text and str(status) in fault.message)


@pytest.mark.parametrize(("status", "text", "kind", "code"), [row for row in TABLE if row[0] in (500, 503) and row[1]])
def test_an_error_line_after_200_means_what_it_means_as_a_status(status: int, text: str, kind: str, code: str) -> None:
    assert faults.from_response(200, text) == faults.from_response(status, text)


@pytest.mark.parametrize(
    ("done", "reason", "text", "expected"),
    [
        (True, "stop", "an answer", None),
        (True, "length", "an answer that was too lo", None),
        (False, "", "yes yes yes yes", (ANSWER, "incomplete")),  # 30 equal tokens in a row: aborted, and still 200
        (False, "", "", (ANSWER, "incomplete")),  # a stream that just ends
        (False, "stop", "an answer", (ANSWER, "incomplete")),
        (True, "", "an answer", (ANSWER, "incomplete")),
        (True, "something new", "an answer", (ANSWER, "incomplete")),
        (True, "load", "", (ANSWER, "unloaded")),
        (True, "unload", "", (ANSWER, "unloaded")),
        (True, "stop", "", (ANSWER, "empty_response")),
        (True, "stop", " \n\t", (ANSWER, "empty_response")),
        (True, "length", "", (REQUEST, "empty_response")),  # all of it spent on thinking
    ],
)
def test_an_answer_with_200_is_whole_or_it_is_a_fault(
    done: bool, reason: str, text: str, expected: tuple[str, str] | None
) -> None:
    fault = faults.incomplete(done, reason, text)
    assert (fault and (fault.kind, fault.code)) == expected


def test_a_connection_that_was_never_made_is_nobodys_fault_and_one_that_broke_is_a_crash() -> None:
    assert faults.connection_refused("refused").kind == NOBODY
    assert faults.connection_lost("reset").kind == CRASH
    assert faults.out_of_time(60).kind == SERVER
    assert faults.stalled(60).kind == SERVER
