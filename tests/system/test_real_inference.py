"""OpenAI's own client asks a real Ollama at once, through the daemon."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ollama
import openai
import pytest
from daemon_support import Daemon
from openai import OpenAI
from programs_support import Programs, on_a_real_server
from pydantic import BaseModel

Start = Callable[..., Daemon]
pytestmark = [pytest.mark.real_ollama, pytest.mark.timeout(240)]
USER: Any = {"role": "user", "content": "Why is the sky blue?"}
CALLS = int(os.environ.get("OBATCHD_TEST_CALLS", "60"))  # a thousand were made by hand


@pytest.fixture
def found(make_daemon: Start) -> Programs:
    """A daemon on one real CPU server."""
    return on_a_real_server(make_daemon)


class Sky(BaseModel):
    """What an answer has to be."""

    blue: bool


def test_the_client(found: Programs) -> None:
    with found.client() as client:
        asked: Any = {"model": "tiny", "messages": [USER], "seed": 1, "temperature": 0, "max_tokens": 20}
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert whole.choices[0].message.content == text != ""
        assert chunks[-1].usage == whole.usage and whole.usage is not None and whole.usage.completion_tokens > 0
        assert whole.choices[0].finish_reason == chunks[-2].choices[0].finish_reason in ("stop", "length")
        parsed = client.chat.completions.parse(model="tiny", messages=[USER], response_format=Sky, max_tokens=30)
        assert isinstance(parsed.choices[0].message.parsed, Sky)
        assert len(client.chat.completions.create(**asked, n=2).choices) == 2
        floats = client.embeddings.create(model="vectors", input=["a text", "another"], encoding_format="float")
        assert len(floats.data) == 2 and len(floats.data[0].embedding) > 8 and floats.usage.prompt_tokens > 0
        with found.client(_strict_response_validation=False) as loose:  # which refuses base64 that it asked for
            packed = loose.embeddings.create(model="vectors", input="a text").data[0].embedding
        assert packed == pytest.approx(floats.data[0].embedding, abs=1e-4)
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=[{**USER, "content": "word " * 9000}])
        assert caught.value.code == "context_length_exceeded"
        for model in ("tiny:latest", "library/tiny", "registry.ollama.ai/library/tiny", "TINY"):
            assert client.chat.completions.create(**asked | {"model": model}).choices
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nope", messages=[USER])
        assert not found.d.events("pull_started")


def test_answers_have_the_fields_of_ollamas_own_copy_of_that_api(found: Programs) -> None:
    [server] = found.d.servers()
    with found.client() as ours, OpenAI(base_url=f"{server['url']}/v1", api_key="-") as theirs:
        asked: Any = {"model": "tiny", "messages": [USER], "seed": 1, "max_tokens": 8}
        both = [one.chat.completions.create(**asked).to_dict() for one in (ours, theirs)]
        assert missing(both[1], both[0]) == []
        streams = [list(one.chat.completions.create(**asked, stream=True)) for one in (ours, theirs)]
        assert missing(streams[1][0].to_dict(), streams[0][0].to_dict()) == []
        assert streams[0][-1].choices[0].finish_reason == streams[1][-1].choices[0].finish_reason


def missing(theirs: Any, ours: Any, place: str = "") -> list[str]:
    """Fields that only they have; a fingerprint of the server says nothing here."""
    if isinstance(theirs, list):
        return missing(theirs[0], ours[0], place) if theirs else []
    if not isinstance(theirs, dict):
        return []
    found = [f"{place}.{name}" for name in theirs if name not in ours and name != "system_fingerprint"]
    return found + [one for name in theirs if name in ours for one in missing(theirs[name], ours[name], name)]


def test_calls_of_all_kinds_beside_a_batch_load_nothing_again(found: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", found.key)
    log = found.d.spool / "work" / "logs" / "cpu0.log"

    def loads() -> int:
        return log.read_text(errors="replace").count('msg="loaded runners"')

    with (
        found.client() as client,
        ollama.Client(f"http://127.0.0.1:{found.port}") as native,
        ThreadPoolExecutor(4) as pool,
    ):
        client.chat.completions.create(model="tiny", messages=[USER], max_tokens=4)
        before = loads()
        lines = [{"id": f"p{n}", "prompt": "why?", "max_response_tokens": 4} for n in range(CALLS * 2 // 5)]
        found.d.drop("beside.jsonl", lines)

        def call(number: int) -> None:
            asked: Any = {"model": "tiny", "messages": [USER], "max_tokens": 4}
            match number % 6:
                case 0:
                    assert client.chat.completions.create(**asked).choices[0].message.content is not None
                case 1:
                    assert [*client.chat.completions.create(**asked, stream=True)][-1].choices[0].finish_reason
                case 2:
                    parsed = client.chat.completions.parse(**asked | {"max_tokens": 30}, response_format=Sky)
                    assert isinstance(parsed.choices[0].message.parsed, Sky)
                case 3:
                    assert native.chat("tiny", [USER], options={"num_predict": 4}, keep_alive=0).done
                case 4:
                    try:
                        assert client.embeddings.create(model="tiny", input="why?", encoding_format="float").data
                    except openai.BadRequestError as error:  # since 0.30
                        assert error.code == "not_supported"
                case _:
                    assert [*native.generate("tiny", "why?", options={"num_predict": 4}, stream=True)][-1].done

        count = CALLS - len(lines)
        assert len([*pool.map(call, range(count))]) == count
        assert len(found.d.done("beside.jsonl", 200).results) == len(lines)
    assert loads() == before == 1
