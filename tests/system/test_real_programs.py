"""OpenAI's own client and a real Ollama: batches of chats and of vectors, from the file to the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from daemon_support import Daemon
from openai_shapes import ERROR_LINE, OUTPUT_LINE
from programs_support import CHAT, Programs, batch_file, line, on_a_real_server

Start = Callable[..., Daemon]
pytestmark = [pytest.mark.real_ollama, pytest.mark.timeout(240)]
EMBEDDINGS = "/v1/embeddings"


@pytest.fixture
def real(make_daemon: Start) -> Programs:
    """A daemon on one real CPU server."""
    return on_a_real_server(make_daemon)


def vector(custom_id: str, **more: Any) -> dict[str, Any]:
    body = {"model": "vectors", "input": ["a text", "another"], **more}
    return {"custom_id": custom_id, "method": "POST", "url": EMBEDDINGS, "body": body}


def test_batches_of_chats_and_vectors(real: Programs) -> None:
    chats = [line(f"c-{number}") for number in range(40)]
    bad = line("bad", body={"model": "tiny", "messages": [], "max_tokens": 5})
    with real.client() as client:
        assert {"tiny:latest", "vectors:latest"} <= {model.id for model in client.models.list()}
        asked = {CHAT: [*chats, bad], EMBEDDINGS: [vector("v-0"), vector("v-1", encoding_format="base64")]}
        batches = {}
        for endpoint, lines in asked.items():
            file = client.files.create(file=("r.jsonl", batch_file(lines)), purpose="batch").id
            made = client.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]
            batches[endpoint] = made.id
        for endpoint, batch in batches.items():
            done = real.until_over(batch, 200)
            assert done.status == "completed" and done.request_counts is not None and done.usage is not None
            assert done.request_counts.total == len(asked[endpoint]) and done.usage.input_tokens > 0
            good, wrong = (
                [json.loads(one) for one in client.files.content(file).text.splitlines()] if file else []
                for file in (done.output_file_id, done.error_file_id)
            )
            assert all(jsonschema.Draft202012Validator(OUTPUT_LINE).is_valid(one) for one in good)
            assert all(jsonschema.Draft202012Validator(ERROR_LINE).is_valid(one) for one in wrong)
            ids = [str(one["custom_id"]) for one in asked[endpoint]]
            assert sorted(one["custom_id"] for one in good + wrong) == sorted(ids)
            assert len(good) == done.request_counts.completed and len(wrong) == done.request_counts.failed
