"""The pure rules of servers: states, versions, names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from settings_support import in_force

from obatchd.delivery.advice import advice
from obatchd.errors import ServerError
from obatchd.model_names import canonical, folded, plain
from obatchd.servers.models import LOCAL, ModelKeeper
from obatchd.servers.process import version_warning
from obatchd.servers.program import Ollama
from obatchd.servers.server import RemoteServer, Server
from obatchd.servers.states import DESCRIPTIONS, TRANSITIONS, ServerState, check
from obatchd.servers.stores import pulling


def test_every_state_is_described_and_can_be_left_and_reached() -> None:
    reached = set().union(*TRANSITIONS.values())
    assert set(DESCRIPTIONS) == set(TRANSITIONS) == reached == set(ServerState)
    assert all(TRANSITIONS.values())


@pytest.mark.parametrize(
    ("address", "url", "server"),
    [
        ("10.0.0.5", "http://10.0.0.5:11434", "remote-10.0.0.5-11434"),
        ("http://10.0.0.5", "http://10.0.0.5:11434", "remote-10.0.0.5-11434"),
        ("https://front.example", "https://front.example:443", "remote-front.example-443"),
        ("https://front.example:8443", "https://front.example:8443", "remote-front.example-8443"),
        ("[::1]:80", "http://[::1]:80", "remote-..1-80"),
    ],
)
def test_the_address_of_a_remote_server(address: str, url: str, server: str) -> None:
    made = RemoteServer(address, in_force(), Deaf())
    assert (made.base_url, made.id) == (url, server)


@pytest.mark.parametrize("said", ["dial tcp: i/o timeout", "pull model manifest: file does not exist"])
def test_a_pull_that_fails_on_a_host_of_others_is_for_its_keeper(said: str) -> None:
    """Before, the advice was a setting for servers that obatchd starts."""
    error = pulling._refusal("tiny", RemoteServer("10.0.0.5:11500", in_force(), Deaf()), said)
    assert said in error.message and "run on the host of 10.0.0.5:11500: ollama pull tiny." in error.message.lower()
    assert "servers.environment" not in error.message
    assert "ollama pull NAME" in advice("pull_failed")


def test_a_model_that_no_job_may_pull_is_pulled_by_whoever_keeps_the_store() -> None:
    server = RemoteServer("10.0.0.5:11500", in_force(), Deaf())
    server.state = ServerState.READY
    servers = {server.id: server}
    fleet: Any = SimpleNamespace(servers=servers, all=servers)
    keeper = ModelKeeper(in_force(), fleet)
    assert keeper._who_pulls(server.id, "m").endswith("can: on the host of 10.0.0.5:11500, ollama pull m")
    assert keeper._who_pulls(LOCAL, "m") == "An administrator can: obatchctl models pull m"


class Deaf:
    """Implements :class:`obatchd.servers.server.ServerListener`."""

    def server_changed(self, server: Server, old: ServerState, new: ServerState, reason: str) -> None:
        pass


def test_a_change_that_is_not_in_the_table_is_a_bug() -> None:
    check(ServerState.STARTING, ServerState.READY)
    with pytest.raises(AssertionError, match="from stopped to ready"):
        check(ServerState.STOPPED, ServerState.READY)


@pytest.mark.parametrize("version", ["0.24.0", "0.24.9", "v0.33.1-rc2", "0.24.0-simulated"])
def test_versions_that_the_system_tests_ran_on_are_used_in_silence(version: str) -> None:
    assert version_warning(version) is None


@pytest.mark.parametrize("version", ["0.20.0", "0.25.0", "0.34.0", "1.24.0", "0.240.0", "", "dev"])
def test_other_versions_are_used_with_a_warning(version: str) -> None:
    assert "0.24 and 0.33" in (version_warning(version) or "")


@pytest.mark.parametrize(
    ("name", "full"),
    [("a", "a:latest"), ("a:7b", "a:7b"), ("host:5000/a", "host:5000/a:latest"), ("host:5000/a:x", "host:5000/a:x")],
)
def test_canonical_names(name: str, full: str) -> None:
    assert canonical(name) == full


def test_a_model_has_several_names() -> None:
    for name in ("tiny", "Tiny", "TINY:Latest", "library/tiny", "registry.ollama.ai/library/tiny:latest"):
        assert folded(name) == "tiny:latest" and plain(name).lower() == "tiny"
    for name in (
        "tiny:7b",
        "me/tiny",
        "registry.ollama.ai/tiny",
        "x/library/tiny",
        "elsewhere/library/tiny",
        "library",
    ):
        assert folded(name) != "tiny:latest"
    assert (
        plain("registry.ollama.ai/me/tiny:7B") == "me/tiny:7B"
        and canonical("hf.co/Me/Tiny:Q4_K_M") == "hf.co/Me/Tiny:Q4_K_M"
    )


def test_a_missing_binary_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="Install Ollama") as caught:
        Ollama(str(tmp_path / "nothing")).command()
    assert caught.value.code == "no_ollama"
