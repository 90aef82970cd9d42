"""JSON Schemas that end a real Ollama 0.24: what is made of them does not, and the stand-in knows which they are."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemon_support import Daemon, jsonl
from ollama_support import Ollama, real_command, real_models, serving, wait_for

from obatchd.prompts.grammar import server_format
from obatchd.simulator.grammar import trouble

Start = Callable[..., Daemon]
pytestmark = [pytest.mark.real_ollama, pytest.mark.timeout(180)]


def field(**schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


SCHEMAS: dict[str, dict[str, Any]] = {
    "digits": field(type="string", pattern=r"^\d{6}$"),
    "address": field(type="string", pattern=r"^[^\s@]+@[^\s@]+\.[a-z]{2,3}$"),
    "look ahead": field(type="string", pattern=r"^(?!x)[a-z]{1,9}$"),
    "groups": field(type="string", pattern=r"^(?:ab|(?P<n>c|d)){1,3}-\w$"),
    "quotes": field(type="string", pattern=r'^"[^"]{1,3}\\"$'),
    "not anchored": field(type="string", pattern=r"abc"),
    "nothing": field(type="string", pattern=r"^$"),
    "endless nothing": field(type="string", pattern=r"^(a*)*$"),
    "many": field(type="string", pattern=r"^[a-z]{1,5000}$"),
    "counts in counts": field(type="string", pattern="^([a-z]{0,1500}-[a-z]{0,1500})+$"),
    "as many as 0.24 counts": field(type="array", items={"type": "string", "maxLength": 2000}, maxItems=1000),
    "long string": field(type="string", maxLength=100_000),
    "long array": field(type="array", items={"type": "null"}, maxItems=10_000),
    "large bound": field(type="integer", minimum=10**17),
    "bounds": field(type="integer", minimum=-7, exclusiveMaximum=120.5),
    "no value": field(enum=[]),
    "values": field(enum=['a"b', "ü", None, {"x": [1]}]),
    "no type": field(description="what it is"),
    "several types": field(type=["string", "null", "array"], maxLength=5),
    "whole schema again": {"type": "object", "properties": {"next": {"$ref": "#"}, "": {"type": "null"}}},
    "tree": {"$defs": {"n/n": field(type="array", maxItems=1, items={"$ref": "#/$defs/n~1n"})}, "$ref": "#/$defs/n~1n"},
    "begins with itself": {"$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}]}}, "$ref": "#/$defs/x"},
    "names": {"properties": {"a]b": {"type": "null"}, "größe": {"type": "null"}}, "additionalProperties": True},
    "any other": {"properties": {"a b": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
    "a property called $ref": {"properties": {"$ref": {"type": "string"}}},
    "a value with a reference": field(const={"$ref": 5}),
    "all of": field(allOf=[{"type": "string"}, {"pattern": "^[ab]{2}$"}]),
    "tuple": field(type="array", prefixItems=[{"type": "null"}, {"type": "boolean"}], items=False),
    "large": {"type": "object", "properties": {"report": {"type": "object", "properties": {
        f"finding_number_{i}": {"type": "string", "maxLength": 5} for i in range(180)}}}},
}  # fmt: skip
HARMFUL = [
    "digits",
    "look ahead",
    "groups",
    "not anchored",
    "long string",
    "no type",
    "whole schema again",
    "a property called $ref",
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Ollama]:
    if (command := real_command()) is None:
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")
    with serving(command, tmp_path / "ollama", real_models()) as ollama:
        yield ollama


def ask(server: Ollama, schema: Any) -> tuple[int, dict[str, Any]]:
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": False, "format": schema,
        "options": {"num_predict": 300, "seed": 1, "num_thread": 1},
    }  # fmt: skip
    answer = server.ask("POST", "/api/chat", body)
    return answer.status, answer.json()


def test_no_schema_that_we_send_harms_a_server(server: Ollama) -> None:
    assert ask(server, "json")[0] == 200
    [runner] = server.runners()
    for name, schema in SCHEMAS.items():
        told = server_format(schema)
        assert trouble(told.format) == "", name
        status, answer = ask(server, told.format)
        assert status == 200, (name, answer, server.log_text()[-500:])
        if answer["done_reason"] == "stop":
            json.loads(answer["message"]["content"])
        assert [process.pid for process in server.runners()] == [runner.pid], f"{name}: the runner died"


@pytest.mark.parametrize("name", HARMFUL)
def test_the_stand_in_knows_what_harms_a_server(server: Ollama, name: str) -> None:
    expected = trouble(SCHEMAS[name])
    version = server.ask("GET", "/api/version").json()["version"]
    if not version.startswith("0.24"):
        pytest.skip("since 0.30 such a schema is refused, not fatal")
    assert ask(server, "json")[0] == 200
    [runner] = server.runners()
    try:
        status, answer = ask(server, SCHEMAS[name])
    except OSError:
        assert expected == "serve" and server.process.wait(10) != 0
        return
    if expected == "refused":
        assert (status, answer["error"]) == (500, "invalid JSON schema in format")
    else:
        assert (expected, status) == ("runner", 500)
        assert re.search("running the model|model runner has unexpectedly stopped", answer["error"])
        wait_for(
            lambda: not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE, "the end of the runner", 10
        )


@pytest.mark.parametrize("servers", [1, 2])
def test_a_schema_that_crashed_servers_holds_up_nobody(make_daemon: Start, servers: int) -> None:
    program, models = os.environ.get("OBATCHD_TEST_OLLAMA"), os.environ.get("OBATCHD_TEST_MODELS")
    if not program or not models:
        pytest.skip("no real Ollama here: scripts/real-ollama says what is missing")
    own = {"ollama": program, "models_dir": models, "cpu_servers": servers, "slots": 4}
    d = make_daemon({"gpus": {"use": "none"}, "max_response_tokens": 64, "servers": own}).start().ready()
    email, digits = (
        f"[format]\ntype = 'object'\nrequired = ['{name}']\n[format.properties.{name}]\n"
        f"type = 'string'\npattern = '{pattern}'\n".encode()
        for name, pattern in (("email", "^(?!x).*$"), ("mrn", r"^\d{6}$"))
    )
    asked = jsonl([{"id": f"r{i}", "prompt": f"Invent an e-mail address number {i}."} for i in range(6)])
    innocent = [{"id": f"n{i}", "prompt": f"say {i}"} for i in range(20)]
    begun_s = time.monotonic()
    d.drop_all({
        "email": {"job.toml": email, "p.jsonl": asked}, "mrn": {"job.toml": digits, "p.jsonl": asked},
        "innocent.jsonl": innocent,
    })  # fmt: skip
    assert len(d.done("innocent.jsonl", 30).results) == len(innocent)
    assert time.monotonic() - begun_s < 30
    mrn, with_address = d.done("mrn", 60), d.done("email", 60)
    assert len(mrn.results) == 6
    assert all(record["data"]["mrn"].isdecimal() and "notes" not in record for record in mrn.results)
    for record in with_address.results:
        assert any("a lookahead or lookbehind in its pattern" in note for note in record["notes"])
    assert set(with_address.codes()) <= {"format_mismatch"}, "gibberish may be cut by its token limit"
    assert len(with_address.results) + len(with_address.errors) == 6
    assert [server["restarts"] for server in d.servers()] == [0] * servers
    assert d.events("attempt_failed") == [] or set(with_address.codes()) == {"format_mismatch"}
