"""Who is at fault, and what to do: every error that Ollama is known to give, verbatim from it or from its source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from obatchd.delivery.advice import advice as summary_advice
from obatchd.ollama import faults
from obatchd.ollama.faults import ANSWER, CRASH, FOREIGN, LOAD, NOBODY, REQUEST, SERVER


def llama_server(code: int, message: str, kind: str, **more: int) -> str:
    """The text of Ollama's error where llama-server refused: the whole of its own answer (0.30 and later)."""
    return json.dumps({"error": {"code": code, "message": message, "type": kind, **more}}, separators=(",", ":"))


RETRY = "retry the job with: obatchctl retry JOB"
MEND = "mend the request as the message says, and drop it again"
ADVICE = {
    "context_exceeded": "give the request a larger context_length, or shorten the prompt",
    "invalid_format": "mend the JSON Schema as the message says, and drop it again",
    "invalid_option": "mend the option that the message names, and drop it again",
    "bad_request": MEND,
    "not_supported": "use a model with the capability that the message names",
    "model_not_found": "check the model's name, or pull it with: obatchctl models pull NAME",
    "does_not_fit": "use a smaller model, a smaller context_length, or a [[servers.group]] of several GPUs",
    "forbidden": "ask an administrator for access: remote_token in [servers], then retry the job",
}
TABLE_033 = [  # of the line whose engine is llama-server, 0.30 and later
    (
        400,
        llama_server(
            400,
            "request (45023 tokens) exceeds the available context size (4096 tokens), try increasing it",
            "exceed_context_size_error",
            n_prompt_tokens=45023,
            n_ctx=4096,
        ),
        REQUEST,
        "context_exceeded",
    ),
    (
        400,
        llama_server(
            400,
            "input (5000 tokens) is larger than the max context size (4096 tokens). skipping",
            "exceed_context_size_error",
            n_prompt_tokens=5000,
            n_ctx=4096,
        ),
        REQUEST,
        "context_exceeded",
    ),
    (
        400,
        "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the "
        "context length in settings, or use a model with a longer context length",
        REQUEST,
        "context_exceeded",
    ),
    (400, "input after truncation exceeds maximum context length", REQUEST, "context_exceeded"),
    (
        400,
        llama_server(400, "Failed to initialize samplers: failed to parse grammar", "invalid_request_error"),
        REQUEST,
        "invalid_format",
    ),
    (
        400,
        llama_server(
            400,
            "Failed to initialize samplers: Unexpected empty grammar stack after accepting piece: <think>",
            "invalid_request_error",
        ),
        REQUEST,
        "invalid_format",
    ),
    (
        400,
        llama_server(
            400,
            "Field 'json_schema': \"json_schema\": At least one of min_value or max_value must be set",
            "invalid_request_error",
        ),
        REQUEST,
        "invalid_format",
    ),
    (
        400,
        llama_server(
            400, 'JSON schema conversion failed:\nUnrecognized schema: {"type":"nothing"}', "invalid_request_error"
        ),
        REQUEST,
        "invalid_format",
    ),
    (
        501,
        "This server does not support embeddings. Start it with `--embeddings`",
        REQUEST,
        "not_supported",
    ),
    (
        500,
        llama_server(
            500,
            "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            "server_error",
        ),
        REQUEST,
        "not_supported",
    ),
    (
        501,
        llama_server(501, "This server does not support completions.", "not_supported_error"),
        REQUEST,
        "not_supported",
    ),
    (501, "in other words", REQUEST, "not_supported"),
    (400, llama_server(400, "in other words", "exceed_context_size_error", n_ctx=4096), REQUEST, "context_exceeded"),
    (500, "decode WebP image: invalid format", REQUEST, "bad_request"),
    (404, "model 'nope:latest' not found", LOAD, "model_not_found"),
    (500, "timed out waiting for llama-server to start - error loading model", LOAD, "load_failed"),
    (500, "error starting llama-server: fork/exec /usr/lib/ollama/llama-server: no such file", LOAD, "load_failed"),
    (
        500,
        "llama-server startup failed after projector CPU offload retry: exit status 1",
        LOAD,
        "load_failed",
    ),
    (
        500,
        "llama-server binary not found (checked: /usr/lib/ollama/llama-server). Run 'cmake -S llama/server' first",
        LOAD,
        "load_failed",
    ),
    (
        500,
        "llama-server reported out-of-memory during startup: cudaMalloc failed: out of memory",
        LOAD,
        "does_not_fit",
    ),
    (
        500,
        "llama-server process has terminated: exit status 1: llama_init_from_model: failed to allocate compute buffers",
        LOAD,
        "does_not_fit",
    ),
    (
        500,
        llama_server(500, "Compute error.", "server_error") + "\nggml_backend_cuda: cudaMalloc failed: out of memory",
        LOAD,
        "does_not_fit",
    ),
    (500, "llama-server process no longer running: signal: segmentation fault", CRASH, "runner_crash"),
    (500, llama_server(500, "Compute error.", "server_error"), SERVER, "server_error"),
    (500, llama_server(500, "Context size has been exceeded.", "server_error"), SERVER, "server_error"),
    (503, llama_server(503, "Loading model", "unavailable_error"), NOBODY, "server_busy"),
    # llama-server died while it worked; "unexpected EOF" has the words of 0.24, all else these (llm/llama_server.go)
    (
        500,
        "error reading llama-server response: read tcp 127.0.0.1:1->127.0.0.1:2: connection reset by peer",
        CRASH,
        "runner_crash",
    ),
    (500, "error reading llama-server chat response: read tcp: connection reset by peer", CRASH, "runner_crash"),
    # /api/embed answers every plain error with 400 (server/routes.go, EmbedHandler)
    (400, 'do embedding request: Post "http://127.0.0.1:45871/v1/embeddings": EOF', CRASH, "runner_crash"),
    (400, "error reading embed response: unexpected EOF", CRASH, "runner_crash"),
    (400, 'Post "http://127.0.0.1:45871/tokenize": dial tcp 127.0.0.1:45871: connect: refused', CRASH, "runner_crash"),
    (400, "llama-server process no longer running: signal: killed", CRASH, "runner_crash"),
    (400, "connection refused", CRASH, "runner_crash"),
    (500, "error reading llama-server response: read tcp 127.0.0.1:1->127.0.0.1:2: broken pipe", CRASH, "runner_crash"),
    (400, "read tcp 127.0.0.1:44418->127.0.0.1:45871: read: connection reset by peer", CRASH, "runner_crash"),
    (400, 'health resp: Get "http://127.0.0.1:45871/health": EOF', CRASH, "runner_crash"),
    (400, "server not responding", SERVER, "server_error"),
    (400, "embedding contains NaN or Inf values", SERVER, "server_error"),
    (400, "empty embedding response", SERVER, "server_error"),
    (400, "unexpected server status: llm server loading model", SERVER, "no_slot"),
]
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
    (499, "request canceled", SERVER, "server_error"),
    # pulls
    (200, "pull model manifest: file does not exist", LOAD, "model_not_found"),
    (200, "write /models/blobs/sha256-1-partial: no space left on device", LOAD, "no_space"),
    # the runner died for want of memory before it worked
    (500, "llama runner process has terminated: cudaMalloc failed: out of memory", LOAD, "does_not_fit"),
    (500, "llama runner process no longer running: 2 CUDA error: out of memory", LOAD, "does_not_fit"),
    (500, "an error was encountered while running the model: CUDA error: out of memory", CRASH, "runner_crash"),
    # the text of a forwarded 4xx of the runner
    (400, "failed to parse grammar", REQUEST, "invalid_format"),
    (422, "something new", REQUEST, "bad_request"),
    (500, "something new", SERVER, "server_error"),
    *TABLE_033,
]


@pytest.mark.parametrize(("status", "text", "kind", "code"), TABLE, ids=[f"{row[0]}-{row[1][:40]}" for row in TABLE])
def test_an_error_answer_is_blamed_on_whom_the_table_says(status: int, text: str, kind: str, code: str) -> None:
    fault = faults.from_response(status, text)
    assert (fault.kind, fault.code) == (kind, code)
    assert faults.ADVICE[fault.code] == ADVICE.get(code, RETRY)
    if text.startswith('{"error":') and text.endswith("}"):
        assert fault.message == json.loads(text)["error"]["message"]
    else:
        assert fault.message == text or (not text and str(status) in fault.message)
    assert faults.from_body(status, json.dumps({"error": text}).encode(), "http://h") == fault


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


@pytest.mark.parametrize(
    ("text", "repeats"), [(")" * 31, True), ("So: " + " yes" * 30 + " ", True), (" yes no" * 12, False)]
)
def test_an_answer_that_ollama_ends_because_it_repeats_itself_says_so(text: str, repeats: bool) -> None:
    fault = faults.incomplete(False, "", text)
    assert fault is not None and ("again and again" in fault.message) is repeats


def test_a_connection_that_was_never_made_is_nobodys_fault_and_one_that_broke_is_a_crash() -> None:
    assert faults.connection_refused("refused").kind == NOBODY
    assert faults.connection_lost("reset").kind == CRASH
    assert faults.out_of_time(60).kind == SERVER
    assert faults.stalled(60).kind == SERVER


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"code": 400, "message": "no"}}', "no"),
        (b'{"error": "no", "signin_url": "https://ollama.com/connect"}', "no"),
        (b'{"error": ""}', "the server answered 400"),
        (b'{"error": "model runner has unexpectedly stopped", "new": 1}', "model runner has unexpectedly stopped"),
    ],
)
def test_the_words_of_an_error_answer_are_found_wherever_they_are(body: bytes, message: str) -> None:
    assert faults.from_body(400, body, "http://h").message == message


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"detail": "no"}', '{"detail": "no"}'),
        (b"<html>\n<b>no</b></html>\n", "no"),
        (b'{"error": {"mess', '{"error": {"mess'),
        (b'{"error": "no", "path": "/"}', "no"),
        (b"\xff" * 1000, "\ufffd" * 119 + "…"),
    ],
)
def test_what_somebody_else_says_is_told_in_short(body: bytes, said: str) -> None:
    fault = faults.from_body(400, body, "http://h/api/chat")
    assert (fault.kind, fault.code) == (FOREIGN, "not_ollama")
    assert fault.message.startswith(f"http://h/api/chat answered 400 ({said}), not as Ollama does: ")


def test_every_failure_has_advice() -> None:
    for code, advice in ADVICE.items():
        assert summary_advice(code) == advice
    assert summary_advice("stalled") == "look at the servers with: obatchctl status, then retry the job"
    assert summary_advice("missing_prompt") == 'give the request a "prompt"'
    assert summary_advice("brand_new_code") == RETRY


RECORDED = Path(__file__).parents[1] / "recorded"
BLAMED = {  # the codes of what a real server refused, by the names in tests/system/exchanges.py
    "context_exceeded": ("too long to generate", "too long to chat", "too long and not to be shifted",
                         "too long for vectors", "vectors of a text longer than a batch"),
    "invalid_format": ("a format that is none", "a type that is none", r"pattern ^\d{6}$", r"pattern ^\w+$"),
    "invalid_option": ("text for temperature", "text for num_ctx", "text for stop"),
    "not_supported": ("no thinking in chat", "no thinking in generate", "no tools", "vectors of a model of text",
                      "text of a model of vectors", "generated text of a model of vectors"),
    "model_not_found": ("no model to chat with", "no model to generate with", "no name of a model to generate with",
                        "no model to show", "no model to embed with", "no model to delete"),
}  # fmt: skip


@pytest.mark.parametrize("line", ["0.24", "0.33"])
def test_what_real_servers_refused_is_blamed_on_whom_it_should_be(line: str) -> None:
    outcomes = json.loads((RECORDED / f"ollama-{line}.json").read_text())["outcomes"]
    codes = {name: code for code, names in BLAMED.items() for name in names}
    refused = {name: found for name, found in outcomes.items() if found["status"] != 200}
    found = {name: faults.from_body(answer["status"], json.dumps({"error": answer["error"]}).encode(), "http://h")
             for name, answer in refused.items()}  # fmt: skip
    assert {name: fault.code for name, fault in found.items()} == {
        name: codes.get(name, "bad_request") for name in found
    }
    assert {fault.kind for fault in found.values()} == {REQUEST, LOAD}
    assert not [fault.message for fault in found.values() if fault.message.startswith("{")]
