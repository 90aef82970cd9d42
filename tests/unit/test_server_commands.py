"""Commands of administrators to servers and to the models in their stores."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from engine_support import until
from operations_support import ADMIN, Desk, desk

from obatchd.cli.obatchctl import main
from obatchd.cli.views import text
from obatchd.client.control import ControlClient
from obatchd.daemon.compose import ServerNews
from obatchd.dispatch.protocol import GiveUp
from obatchd.documents.answers import Removed
from obatchd.errors import ControlError, NotFoundError
from obatchd.ollama.faults import Fault
from obatchd.operations import servers as module
from obatchd.servers.models import ModelInfo
from obatchd.servers.states import ServerState


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with desk(monkeypatch, tmp_path) as made:
        yield made


async def test_a_server_is_drained_and_resumed(rig: Desk) -> None:
    drained = await rig.operations.servers.act(ADMIN, "gpu0", "drain")
    assert drained.state == "draining"
    assert re.fullmatch(r"by an administrator at \d\d:\d\d; back with: obatchctl servers resume gpu0", drained.reason)
    assert (await rig.operations.servers.act(ADMIN, "gpu0", "resume")).state == "ready"
    assert rig.server("gpu1").ready


async def test_a_drain_that_lasts_is_answered_before_it_is_done(rig: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ACTION_S", 0.01)
    live = await rig.take("a")
    await rig.begun(live)
    answered = await rig.operations.servers.act(ADMIN, "gpu0", "drain")
    assert (answered.state, answered.in_flight) == ("draining", 1)
    await rig.answer(live)
    assert (await rig.published(live))["succeeded"] == 1


async def test_a_restart_moves_the_requests_and_ends_a_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk(monkeypatch, tmp_path, servers={"drain_s": 0}) as rig:
        live = await rig.take("a")
        await rig.begun(live)
        worker = rig.worker("gpu0")
        restarting = asyncio.create_task(rig.operations.servers.act(ADMIN, "gpu0", "restart"))
        await until(lambda: any(isinstance(message, GiveUp) for message in worker.sent))
        assert rig.server("gpu0").state is ServerState.DRAINING
        assert rig.server("gpu0").reason == "is about to be restarted, asked by an administrator"
        [moved] = [message for message in worker.sent if isinstance(message, GiveUp)]
        worker.end((live.key, 1), Fault(moved.fault, moved.code, moved.message))
        shown = await restarting
        assert (shown.state, shown.pid, rig.server("gpu0").holds) == ("ready", 4711, {})
        assert shown.reason == "resumed" and not shown.watchdog
        await rig.answer(live)
        assert (await rig.published(live))["succeeded"] == 1


async def test_a_server_that_was_given_up_is_tried_at_once_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(monkeypatch, tmp_path, servers={"starts_limit": 1, "slow_retry_s": 600}) as rig:
        server = rig.server("gpu0")
        server.broken("5 faults")
        await until(lambda: server.state is ServerState.FAILED)
        assert re.search(r"next try at [\d:]+, at once with: obatchctl servers resume gpu0", server.reason)
        assert (await rig.operations.servers.act(ADMIN, "gpu0", "resume")).state in ("starting", "ready")
        await until(lambda: server.ready)


def test_a_server_that_is_tried_again_and_again_raises_one_alarm() -> None:
    raised: list[Any] = []
    nobody: Any = SimpleNamespace(server_changed=lambda server: None, announce=raised.append)
    news, server = ServerNews(nobody, nobody), cast(Any, SimpleNamespace(id="gpu0", gpu_label=""))
    S = ServerState
    for new in (S.FAILED, S.STARTING, S.FAILED, S.STARTING, S.READY, S.BACKOFF, S.FAILED):
        news.server_changed(server, S.STARTING, new, new.value)
    assert [alarm.server for alarm in raised] == ["gpu0", "gpu0"]


async def test_a_server_that_dispatch_does_not_know_is_restarted_too(rig: Desk) -> None:
    rig.engine.dispatcher.links.pop("gpu1")
    assert (await rig.operations.servers.act(ADMIN, "gpu1", "restart")).state == "ready"


async def test_an_unknown_server_is_told_with_those_there_are(rig: Desk) -> None:
    with pytest.raises(NotFoundError, match="no server gpu9; there are: gpu0, gpu1"):
        await rig.operations.servers.act(ADMIN, "gpu9", "drain")


@pytest.mark.parametrize("name", ["127.0.0.1:20000", "http://127.0.0.1:20000", "gpu0"])
async def test_a_server_may_be_named_by_its_address(rig: Desk, name: str) -> None:
    """Before, the address as the configuration has it was no server."""
    assert (await rig.operations.servers.act(ADMIN, name, "drain")).id == "gpu0"


@pytest.mark.parametrize(
    ("state", "in_flight", "said"),
    [
        ("draining", 0, "it: drained; it gets no new requests until"),
        ("draining", 1, "it: draining; it gets no new requests until"),
        ("backoff", 0, "it: down (no answer); when it is back it gets no requests until"),
    ],
)
def test_a_drain_says_what_it_means_and_how_long_it_lasts(
    monkeypatch: pytest.MonkeyPatch, state: str, in_flight: int, said: str
) -> None:
    """Before, it said no more than the state: draining for ever, or that of a server that is down."""
    server = {"id": "it", "kind": "remote", "state": state, "reason": "no answer", "in_flight": in_flight, "offered": 0}
    monkeypatch.setattr(ControlClient, "post", lambda *_: server)
    output = CliRunner().invoke(main, ["--spool", "/nowhere", "servers", "drain", "it"]).output
    assert output == f"{said} obatchctl servers resume it, or until obatchd restarts\n"


@pytest.mark.parametrize("kind", ["remote", "managed"])
def test_a_server_elsewhere_is_not_said_to_be_started(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(ControlClient, "post", lambda *_: {"id": "it", "kind": kind, "state": "starting"})
    said = CliRunner().invoke(main, ["--spool", "/nowhere", "servers", "restart", "it"]).output
    assert (
        said
        == {
            "remote": "it: starting; it runs elsewhere and goes on there, obatchd only connects to it again\n",
            "managed": "it: starting\n",
        }[kind]
    )


async def test_the_log_of_a_managed_server_is_read_and_that_of_another_host_is_there(rig: Desk) -> None:
    server = rig.server("gpu0")
    server.log_file.parent.mkdir(parents=True)
    server.log_file.write_text("one\ntwo\nthree\n")
    assert [line.strip() async for line in rig.operations.servers.log("gpu0", 2, False)] == ["two", "three"]
    rig.fleet.servers["far"] = SimpleNamespace(id="far")
    with pytest.raises(ControlError, match="on its own host") as remote:
        await anext(rig.operations.servers.log("far", 2, False))
    del rig.fleet.servers["far"]
    assert remote.value.code == "remote"


async def test_models_are_listed_pulled_and_removed(rig: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def listed() -> list[ModelInfo]:
        return [ModelInfo("small:latest", "sha", "Q4", "1B", 0, [], 5)]

    monkeypatch.setattr(rig.store, "list_models", listed)
    [entry] = await rig.operations.models.all()
    assert (entry.model, entry.name, entry.digest, entry.size_bytes) == ("small:latest", "small:latest", "sha", 5)
    assert [step.completed_bytes async for step in rig.operations.models.pull("large")] == [1, 2, 3]
    assert await rig.operations.models.remove("large") == Removed("large")
    assert rig.store.removed == ["large"]


def test_a_list_of_models_says_who_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, a model of seven hosts stood there seven times, without their names."""

    def shown(*models: tuple[str, str, str]) -> list[str]:
        listed = [{"model": name, "digest": digest, "size_bytes": 5, "store": store} for name, digest, store in models]
        monkeypatch.setattr(ControlClient, "get", lambda *_: {"models": listed})
        output = CliRunner().invoke(main, ["--spool", "/nowhere", "models"]).output
        return [" ".join(line.split()) for line in output.splitlines()]

    assert shown(("a", "1", "far0"), ("a", "1", "far1"), ("a", "2", "local")) == [
        "MODEL SIZE PARAMETERS QUANTIZATION DIGEST WHO HAS IT", "a 5 B – – 1 far0, far1", "a 5 B – – 2 this host"
    ]  # fmt: skip
    ports = [f"remote-10.0.0.{number}-11434" for number in (1, 2)]
    monkeypatch.setattr(text, "_width", lambda: 40)
    assert shown(("a", "1", ports[0]), ("a", "2", ports[1])) == [
        "MODEL SIZE DIGEST WHO HAS IT", "a 5 B 1 10.0.0.1:11434", "a 5 B 2 10.0.0.2:11434"
    ]  # fmt: skip
    monkeypatch.undo()
    assert shown(("a", "1", "local")) == ["MODEL SIZE PARAMETERS QUANTIZATION DIGEST", "a 5 B – – 1"]


async def test_a_download_that_nobody_waits_for_any_more_is_left_in_order(rig: Desk) -> None:
    steps = rig.operations.models.pull("large")
    await anext(steps)
    await steps.aclose()  # type: ignore[attr-defined]
    assert rig.store.given_up == 1


async def test_the_configuration_is_read_again_by_whoever_can(rig: Desk) -> None:
    answer = await rig.operations.host.reload()
    assert rig.reloads == 1 and answer == await rig.operations.host.reload()
