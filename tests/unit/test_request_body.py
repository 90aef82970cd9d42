"""What Ollama is sent for a request."""

from __future__ import annotations

from typing import Any

import pytest

from obatchd.dispatch.protocol import JobContext
from obatchd.dispatch.worker.body import LOAD_OPTIONS, request_body
from obatchd.jobs.formats.request import Request

LOADED = {"num_ctx": 8192, "num_thread": 1}


def body(request: Request, options: dict[str, Any] | None = None, *, system: str = "") -> dict[str, Any]:
    return request_body(request, JobContext(1, "job", system, options or {}, 500), "tiny", LOADED)


def test_what_every_request_is_sent_with() -> None:
    sent = body(Request(prompt="why?"))
    assert sent == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "why?"}],
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": {"num_predict": 500, **LOADED},
    }


def test_a_request_goes_before_its_job() -> None:
    sent = body(Request(prompt="p", options={"temperature": 0.1, "seed": 7}), {"temperature": 0.9, "top_k": 5})
    assert sent["options"] == {"temperature": 0.1, "seed": 7, "top_k": 5, "num_predict": 500, **LOADED}


@pytest.mark.parametrize("name", sorted(LOAD_OPTIONS))
def test_options_that_would_load_the_model_again_are_never_sent_as_asked(name: str) -> None:
    sent = body(Request(prompt="p", options={name: 3}), {name: 2})
    assert sent["options"] == {"num_predict": 500, **LOADED}


@pytest.mark.parametrize(
    ("limit", "options", "expected"),
    [
        (None, {}, 500),
        (20, {}, 20),
        (20, {"num_predict": 30}, 20),
        (None, {"num_predict": 30}, 30),
        (None, {"num_predict": -1}, 500),  # for ever: never
        (None, {"num_predict": 0}, 500),
        (None, {"num_predict": "all"}, 500),
    ],
)
def test_a_token_limit_is_always_sent(limit: int | None, options: dict[str, Any], expected: int) -> None:
    sent = body(Request(prompt="p", max_response_tokens=limit, options=options))
    assert sent["options"]["num_predict"] == expected


@pytest.mark.parametrize(
    ("own", "of_job", "expected"),
    [(None, "be brief", "be brief"), ("be rude", "be brief", "be rude"), ("", "be brief", None), (None, "", None)],
)
def test_the_system_message_of_a_request_goes_before_its_jobs(
    own: str | None, of_job: str, expected: str | None
) -> None:
    messages = body(Request(prompt="p", system=own), system=of_job)["messages"]
    assert [m["content"] for m in messages if m["role"] == "system"] == ([expected] if expected else [])
    assert messages[-1] == {"role": "user", "content": "p"}


def test_messages_are_sent_as_they_are_and_keep_their_own_system_message() -> None:
    given: list[dict[str, Any]] = [
        {"role": "system", "content": "mine"},
        {"role": "user", "content": "p", "images": ["aGk="]},
    ]
    assert body(Request(prompt="p", messages=given), system="the job's")["messages"] == given
    assert given[0]["content"] == "mine"
    assert len(given) == 2


def test_a_system_message_is_put_before_messages_without_one_and_not_into_them() -> None:
    given: list[dict[str, Any]] = [{"role": "user", "content": "p"}]
    sent = body(Request(prompt="p", messages=given), system="be brief")["messages"]
    assert [message["role"] for message in sent] == ["system", "user"]
    assert len(given) == 1


def test_the_role_of_a_line_in_the_original_format_is_kept() -> None:
    assert body(Request(prompt="p", role="assistant"))["messages"] == [{"role": "assistant", "content": "p"}]


@pytest.mark.parametrize("think", [True, False, "high"])
def test_format_and_think_are_sent_only_when_asked_for(think: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    sent = body(Request(prompt="p", format=schema, think=think))
    assert (sent["format"], sent["think"]) == (schema, think)
    assert not {"format", "think"} & set(body(Request(prompt="p")))
