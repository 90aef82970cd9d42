"""Models in stores: present, pulled, forbidden, missing; on stand-in servers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from fleet_support import Bench, running, settings, wait_for
from settings_support import in_force

from obatchd.errors import ModelError, ServerError
from obatchd.jobs.model import Profile
from obatchd.servers.models import ModelKeeper
from obatchd.servers.states import ServerState

PLENTY_BYTES = 10**15


@asynccontextmanager
async def keeping(bench: Bench, *, free_bytes: int = PLENTY_BYTES, **chosen: Any) -> AsyncIterator[ModelKeeper]:
    keeper = ModelKeeper(in_force(models=chosen), bench.fleet)
    with patch("shutil.disk_usage", return_value=SimpleNamespace(free=free_bytes)):
        try:
            yield keeper
        finally:
            await keeper.close()


async def test_a_present_model_is_described(tmp_path: Path) -> None:
    async with running(settings("simulated:2"), tmp_path) as bench, keeping(bench) as keeper:
        first, second = await bench.ready()
        info = await keeper.ensure("tiny")
        assert (info.name, info.quantization, info.parameter_size, info.store) == ("tiny", "F16", "484K", "local")
        assert info.context_length == 131072 and info.capabilities == ["completion"] and info.size_bytes == 1_000_000
        assert len(info.digest) == 64
        assert keeper.has(first, "tiny") and keeper.has(second, "tiny:latest") and not keeper.has(first, "other")
        assert keeper.info("tiny:latest") == info and not keeper.pulls
        keeper.forget("tiny")
        assert not keeper.has(first, "tiny")


async def test_an_absent_model_is_pulled_once_for_all_who_wait(tmp_path: Path) -> None:
    chosen = settings("simulated:2", {"pull_s": 0.5, "pull_bytes": 5000})
    async with running(chosen, tmp_path) as bench, keeping(bench) as keeper:
        await bench.ready()
        waiting = [asyncio.create_task(keeper.ensure("new")) for _ in range(5)]
        await wait_for(lambda: "new" in keeper.pulls and keeper.pulls["new"].completed_bytes > 0)
        assert keeper.pulls["new"].total_bytes >= 5000 and keeper.pulls["new"].server == "gpu0"
        waiting[0].cancel()  # one who gives up does not end it for the others
        infos = await asyncio.gather(*waiting[1:])
        assert len({info.digest for info in infos}) == 1 and not keeper.pulls
        logs = [(tmp_path / "logs" / f"gpu{index}.log").read_text().count("/api/pull") for index in (0, 1)]
        assert sum(logs) == 1
        for server in await bench.ready():
            await server.load(Profile("new", 4096))


@pytest.mark.parametrize(
    ("model", "chosen", "code", "words"),
    [
        ("other", {"allow": ["tiny*", "llama*"]}, "model_forbidden", r"tiny\*, llama\*"),
        ("other", {"pull": "admin"}, "model_not_found", "obatchctl models pull other"),
        ("other", {"pull": "never"}, "model_not_found", "never"),
        ("missing-one", {}, "model_not_found", "registry"),
        ("other", {"pull_margin_bytes": 2 * PLENTY_BYTES}, "no_space", "pull_margin_bytes"),
    ],
)
async def test_a_model_that_cannot_be_had(
    tmp_path: Path, model: str, chosen: dict[str, Any], code: str, words: str
) -> None:
    async with running(settings(), tmp_path) as bench, keeping(bench, **chosen) as keeper:
        await bench.ready()
        with pytest.raises(ModelError, match=words) as caught:
            await keeper.ensure(model)
        assert caught.value.code == code and not keeper.pulls


async def test_a_look_that_nobody_waits_for_any_more_ends_without_a_defect(tmp_path: Path) -> None:
    async with running(settings(simulator={"pull_s": 0.2}), tmp_path) as bench, keeping(bench) as keeper:
        await bench.ready()
        lost: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        for model in ("missing-one", "missing-two"):
            waiting = asyncio.create_task(keeper.ensure(model))
            await wait_for(lambda model=model: any(t.get_name() == f"ensure-{model}" for t in asyncio.all_tasks()))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await wait_for(lambda: not any(t.get_name().startswith("ensure-") for t in asyncio.all_tasks()))
            gc.collect()
        assert not lost


async def test_a_pull_stops_when_its_size_is_known_to_be_too_much(tmp_path: Path) -> None:
    chosen = settings(simulator={"pull_s": 5, "pull_bytes": 10**9})
    async with (
        running(chosen, tmp_path) as bench,
        keeping(bench, free_bytes=10**8, pull_margin_bytes=0) as keeper,
    ):
        await bench.ready()
        async with asyncio.timeout(4):
            with pytest.raises(ModelError, match="are missing") as caught:
                await keeper.ensure("large")
        assert caught.value.code == "no_space"


async def test_an_administrator_may_pull_what_jobs_may_not(tmp_path: Path) -> None:
    chosen = {"pull": "admin", "allow": ["tiny"]}
    async with running(settings(), tmp_path) as bench, keeping(bench, **chosen) as keeper:
        await bench.ready()
        assert (await keeper.ensure("other", by_admin=True)).name == "other"
        steps = [(step.model, step.done) async for step in keeper.pull("another")]
        assert len(steps) > 1 and steps[-1] == ("another", True)
        names = {info.name for info in await keeper.list_models()}
        assert {"tiny:latest", "other:latest", "another:latest"} <= names


async def test_remove(tmp_path: Path) -> None:
    async with running(settings(), tmp_path) as bench, keeping(bench) as keeper:
        (server,) = await bench.ready()
        await keeper.ensure("tiny")
        await server.load(Profile("tiny", 4096))
        server.in_flight = 1
        with pytest.raises(ModelError, match="at work on gpu0"):
            await keeper.remove("tiny:latest")
        server.in_flight = 0
        await keeper.remove("tiny")
        assert server.loaded is None
        assert not keeper.has(server, "tiny")
        with pytest.raises(ModelError) as caught:
            await keeper.remove("tiny")
        assert caught.value.code == "model_not_found"


async def test_without_a_server_nobody_can_be_asked(tmp_path: Path) -> None:
    async with running(settings(simulator={"start_failure": "no"}), tmp_path) as bench, keeping(bench) as keeper:
        with pytest.raises(ServerError) as caught:
            await keeper.ensure("tiny")
        assert caught.value.code == "no_server" and not isinstance(caught.value, ModelError)


async def test_every_remote_server_has_a_store_of_its_own(tmp_path: Path) -> None:
    one, other = settings(), settings(simulator={"models": [{"name": "only-here"}]})
    async with running(one, tmp_path / "one") as first, running(other, tmp_path / "other") as second:
        addresses = [(await bench.ready())[0].base_url.removeprefix("http://") for bench in (first, second)]
        client = settings("none", ollama_instances=dict.fromkeys(addresses, 0))
        async with running(client, tmp_path / "client") as bench, keeping(bench, pull="never") as keeper:
            a, b = await bench.ready()
            info = await keeper.ensure("only-here")
            assert info.store == b.id
            assert (keeper.has(a, "only-here"), keeper.has(b, "only-here")) == (False, True)
            with pytest.raises(ModelError):
                await keeper.ensure_on(a, "only-here")
        async with running(client, tmp_path / "client") as bench, keeping(bench) as keeper:
            a, b = await bench.ready()
            await keeper.ensure("only-here")
            assert keeper.has(a, "only-here")


async def test_a_pull_goes_on_through_another_server_when_one_dies(tmp_path: Path) -> None:
    async with running(settings("simulated:2", {"pull_s": 1.0}), tmp_path) as bench, keeping(bench) as keeper:
        first, _ = await bench.ready()
        waiting = asyncio.create_task(keeper.ensure("new"))
        await wait_for(lambda: "new" in keeper.pulls and keeper.pulls["new"].completed_bytes > 0)
        stopping = asyncio.create_task(first.stop())
        assert (await waiting).name == "new"
        await stopping
        assert first.state is ServerState.STOPPED
