"""Models in the stores of joined hosts, as the head lists, pulls and removes them; the hosts are in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from session_support import Kept, sessions
from settings_support import in_force
from test_host_desks import Tasks

from obatchd.cluster.head import models as module
from obatchd.cluster.head.joined import JoinedHost
from obatchd.cluster.head.models import HostStores
from obatchd.cluster.host.desks.models import ModelDesk
from obatchd.cluster.messages import HostNews
from obatchd.documents.gpus import Gpus, KernelLogState
from obatchd.documents.models import PullProgress
from obatchd.errors import ModelError, ServerError
from obatchd.ollama.api import StoredModel
from obatchd.servers.models import ModelKeeper
from obatchd.servers.stores.known import ModelInfo
from obatchd.servers.stores.sharing import share_of
from obatchd.tasks import TaskSet

NO_GPUS = Gpus("ok", "", None, KernelLogState(None, ""), [])


class Store:
    """A host's keeper: digests by model."""

    def __init__(self, **digests: str) -> None:
        self.digests = digests
        self.refuses = ""  # code of the error
        self.hangs = False
        self.answers = asyncio.Event()
        self.asked = 0

    def forget(self, model: str) -> None:
        pass

    async def ensure(self, model: str, *, by_admin: bool = False) -> ModelInfo:
        self.asked += 1
        if self.hangs:
            await self.answers.wait()
        if self.refuses or model not in self.digests:
            raise ModelError(f"Model {model} is not to be had.", code=self.refuses or "model_not_found")
        return ModelInfo(model, self.digests[model], "Q4", "8B", 8192, ["completion"], 5)

    async def listed(self) -> list[StoredModel]:
        return [StoredModel(f"{name}:latest", digest) for name, digest in self.digests.items()]

    async def show(self, model: str, *, verbose: bool) -> dict[str, msgspec.Raw] | None:
        return {"digest": msgspec.Raw(msgspec.json.encode(self.digests[model]))} if model in self.digests else None

    async def pull(self, name: str) -> AsyncGenerator[PullProgress, None]:
        yield PullProgress(name, "gpu0", "pulling", 1, 2)
        if self.refuses:
            raise ModelError(f"No space to pull {name} on gpu0.", code=self.refuses)
        self.digests[name] = "new"
        yield PullProgress(name, "gpu0", "success", 2, 2, True)

    async def remove(self, name: str) -> None:
        if self.digests.pop(name, None) is None:
            raise ModelError(f"There is no model {name} in the store.", code="model_not_found")


class Rig:
    """A head without servers of its own, and hosts with a store each; ``away`` never comes."""

    def __init__(self, **stores: Store) -> None:
        attached: Any = None
        self.hosts = {name: JoinedHost(name, attached) for name in (*stores, "away")}
        self.stores = stores
        self.guests = {
            f"{name}.gpu0": SimpleNamespace(
                id=f"{name}.gpu0", store=name, up=True, loaded=None, loading=None, in_flight=0
            )
            for name in stores
        }
        fleet: Any = SimpleNamespace(servers={}, all=self.guests)
        self.keeper = ModelKeeper(in_force(), fleet)
        self.keeper.elsewhere = HostStores(self.hosts)

    def server(self, host: str) -> Any:
        return self.guests[f"{host}.gpu0"]

    def pulling(self, host: str, model: str) -> None:
        self.hosts[host].news = HostNews(NO_GPUS, [], pulls={model: PullProgress(model, "gpu0", "pulling", 1, 9)})


@contextlib.asynccontextmanager
async def fleet(**stores: Store) -> AsyncIterator[Rig]:
    rig, tasks = Rig(**stores), TaskSet(Tasks())
    ends, running = [], []
    for name, store in stores.items():
        keeper: Any = store
        head, host = sessions(Kept(), Kept(), of_host={"models": ModelDesk(keeper)})
        rig.hosts[name].session = head
        ends.append(head)
        running += [tasks.start(session.run(), session.peer) for session in (head, host)]
    try:
        yield rig
    finally:
        for head in ends:
            head.end("the test is over")
        await asyncio.gather(*running)
        await rig.keeper.close()


async def test_models_are_listed_by_host() -> None:
    async with fleet(node01=Store(m="55be"), node02=Store(m="55be", n="77aa")) as rig:
        found = [(info.name, info.store) for info in await rig.keeper.list_models()]
        assert found == [("m:latest", "node01"), ("m:latest", "node02"), ("n:latest", "node02")]
        assert await rig.keeper.show("n", verbose=False) == {"digest": msgspec.Raw(b'"77aa"')}
        assert await rig.keeper.show("x", verbose=False) is None
        assert await rig.keeper.digest("n") == "77aa"


async def test_a_host_that_is_lost_or_refuses_fails_no_job() -> None:
    async with fleet(node01=Store(m="55be"), node02=Store(m="55be")) as rig:
        rig.stores["node02"].refuses = "no_space"
        assert (await rig.keeper.ensure("m")).store == "node01"
        with pytest.raises(ModelError, match=r"^host node02: Model m is not to be had\.$"):
            await rig.keeper.ensure_on(rig.server("node02"), "m")
        rig.hosts["node02"].session = None
        with pytest.raises(ServerError, match=r"^host node02 is away") as caught:
            await rig.keeper.ensure_on(rig.server("node02"), "m")
        assert caught.value.code == "host_away"


async def test_a_host_that_hangs_keeps_nobody_waiting_unless_it_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.05)
    async with fleet(node01=Store(m="55be")) as rig:
        store = rig.stores["node01"]
        store.hangs = True
        with pytest.raises(ServerError, match=r"host node01 has not said within 0\.05 s whether it has m") as caught:
            await rig.keeper.ensure_on(rig.server("node01"), "m")
        assert caught.value.code == "host_away"
        rig.pulling("node01", "m:latest")
        asked = asyncio.create_task(rig.keeper.ensure_on(rig.server("node01"), "m"))
        assert not (await asyncio.wait({asked}, timeout=0.3))[0]
        store.answers.set()
        assert (await asked).digest == "55be"
        assert list(rig.keeper.pulls) == ["m:latest on node01"]


async def test_different_models_of_one_name_are_told_with_the_host() -> None:
    async with fleet(node01=Store(m="55be"), node02=Store(m="55be"), node03=Store(m="b060")) as rig:
        for name in rig.stores:
            await rig.keeper.ensure_on(rig.server(name), "m")
        [notice] = rig.keeper.notices
        assert "node03 has b060, the others 55be" in notice and "`obatchctl models pull m:latest`" in notice
        rig.stores["node03"].digests["m"] = "55be"
        await rig.keeper.list_models()
        assert rig.keeper.notices == []


async def test_a_model_is_pulled_into_every_store_and_a_failure_names_its_host() -> None:
    async with fleet(node01=Store(), node02=Store()) as rig:
        steps = [step async for step in rig.keeper.pull("m")]
        assert {step.server for step in steps if step.done} == {"node01.gpu0", "node02.gpu0"}
        assert rig.keeper.info("m", rig.server("node02")) is not None
        rig.stores["node02"].refuses = "no_space"
        seen: list[str] = []
        with pytest.raises(ModelError, match=r"node02: No space to pull n on gpu0\. It is there now: node01\.$"):
            async for step in rig.keeper.pull("n"):
                seen.append(step.server)
        assert "n" in rig.stores["node01"].digests and "node02.gpu0" in seen


async def test_a_pull_that_nobody_follows_any_more_is_given_up() -> None:
    async with fleet(node01=Store(), node02=Store()) as rig:
        async with contextlib.aclosing(rig.keeper.pull("m")) as steps:
            await anext(steps)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("pull-")]


async def test_a_model_is_removed_everywhere_unless_a_server_works_with_it() -> None:
    async with fleet(node01=Store(m="1"), node02=Store()) as rig:
        server = rig.server("node01")
        server.loaded, server.in_flight = SimpleNamespace(model="m"), 1
        with pytest.raises(ModelError, match=r"^Model m is at work on node01\.gpu0\."):
            await rig.keeper.remove("m")
        server.in_flight = 0
        await rig.keeper.remove("m")
        assert rig.stores["node01"].digests == {}
        with pytest.raises(ModelError, match="There is no model m in the store"):
            await rig.keeper.remove("m")


async def test_hosts_that_share_a_store_pull_into_it_once_and_one_at_a_time() -> None:
    shared, own = Store(m="1"), Store(m="1")
    async with fleet(node01=shared, node02=shared, node03=own) as rig:
        for name in ("node01", "node02"):
            rig.hosts[name].news = HostNews(NO_GPUS, [], share="files:/models")
        steps = [step async for step in rig.keeper.pull("n")]
        assert sorted(step.server for step in steps if step.done) == ["node01.gpu0", "node03.gpu0"]
        found = [info.store for info in await rig.keeper.list_models() if info.name == "n:latest"]
        assert found == ["node01", "node02", "node03"], "it is shown for each"
        shared.hangs, shared.asked = True, 0
        asked = [asyncio.create_task(rig.keeper.ensure_on(rig.server(name), "m")) for name in ("node01", "node02")]
        async with asyncio.timeout(5):
            while not shared.asked:
                await asyncio.sleep(0.01)
        assert shared.asked == 1, "the other one waits for its turn"
        shared.answers.set()
        assert [(await one).store for one in asked] == ["node01", "node02"]
        await rig.keeper.remove("m")
        assert "m" not in shared.digests and "m" not in own.digests


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:50 / /srv rw,relatime shared:2 - nfs4 files:/export rw,vers=4.2
41 22 0:51 /sub\\040dir /mnt/with\\040space rw - cifs //box/share rw
42 22 8:2 /deep /home rw - xfs /dev/sdb rw
43 40 0:52 / /srv/local rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "share"),
    [
        ("/srv/models", "files:/export:/models"),
        ("/srv", "files:/export:/"),
        ("/mnt/with space/m", "//box/share:/sub dir/m"),
        ("/home/models", ""),
        ("/srv/local/models", ""),
        ("/srvother", ""),
    ],
)
def test_a_directory_on_a_file_server_is_called_the_same_by_all(tmp_path: Path, path: str, share: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert share_of(Path(path), mounts) == share
    assert share_of(Path(path), tmp_path / "none") == ""
