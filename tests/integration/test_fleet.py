"""Servers kept alive: started, watched, restarted, given up, drained, swept. The servers are stand-ins."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from fleet_support import DictFacts, running, settings, wait_for
from process_support import alive

from obatchd.errors import ConfigError, ModelError, ServerError
from obatchd.jobs.model import Profile
from obatchd.ollama.api import LoadedModel, OllamaApi
from obatchd.servers import fleet
from obatchd.servers.managed import ManagedServer
from obatchd.servers.server import Server
from obatchd.servers.states import ServerState
from obatchd.servers.sweep import marked, sweep
from obatchd.settings.settings import Settings
from obatchd.simulator.gpus import SimulatedGpus
from obatchd.simulator.timeline import GpuEvent, write_script

GIB = 1024**3
S = ServerState
TINY = Profile("tiny", 8192)


async def test_one_server_per_gpu_each_pinned_to_its_own(tmp_path: Path) -> None:
    async with running(settings("simulated:2"), tmp_path) as bench:
        servers = await bench.ready()
        assert [server.id for server in servers] == ["gpu0", "gpu1"]
        assert [server.gpu_label for server in servers] == [gpu.uuid for gpu in bench.probe.gpus]
        assert len({server.base_url for server in servers}) == 2
        for server in servers:
            assert server.kind == "managed" and server.slots == 8 and server.version == "0.24.0-simulated"
            environment = Path(f"/proc/{server.pid}/environ").read_text()
            assert f"CUDA_VISIBLE_DEVICES={server.gpu_label}\0" in environment
            assert os.getsid(server.pid or 0) == server.pid
        pids = [server.pid for server in servers]
    assert not any(alive(pid or 0) for pid in pids)
    assert bench.states_of("gpu0") == [S.STARTING, S.READY, S.STOPPING, S.STOPPED]
    assert (tmp_path / "logs" / "gpu0.log").stat().st_size > 0


async def test_ports_are_kept(tmp_path: Path) -> None:
    facts = DictFacts()
    urls = []
    for _ in range(2):
        async with running(settings(), tmp_path, facts=facts) as bench:
            (server,) = await bench.ready()
            urls.append(server.base_url)
    assert urls[0] == urls[1]


async def test_a_kept_port_that_is_taken_is_replaced(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        facts = DictFacts({"port/gpu0": str(taken)})
        async with running(settings(), tmp_path, facts=facts) as bench:
            (server,) = await bench.ready()
            assert not server.base_url.endswith(f":{taken}") and facts["port/gpu0"] != str(taken)


async def test_a_configured_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        async with running(settings(servers={"base_port": taken}), tmp_path) as bench:
            server = bench.fleet.servers["gpu0"]
            await asyncio.wait_for(server.until({S.BACKOFF}), 40)
            assert f"Port {taken}" in server.reason and "servers.base_port" in server.reason


async def test_a_killed_serve_comes_back_and_its_runner_goes_with_it(tmp_path: Path) -> None:
    async with running(settings(), tmp_path) as bench:
        (server,) = await bench.ready()
        await server.load(TINY)
        family = [process.pid for process in marked(bench.instance)]
        serve = server.pid
        assert serve in family and len(family) >= 2
        os.kill(serve or 0, signal.SIGKILL)
        await asyncio.wait_for(server.until({S.BACKOFF}), 40)
        assert not any(alive(pid) for pid in family)
        assert server.loaded is None and server.pid is None and server.restarts == 1
        await bench.ready()
        assert server.pid not in (None, serve)


async def test_one_failing_server_does_not_touch_the_others(tmp_path: Path) -> None:
    async with running(settings("simulated:2"), tmp_path) as bench:
        first, second = await bench.ready()
        os.kill(first.pid or 0, signal.SIGKILL)
        await asyncio.wait_for(first.until({S.BACKOFF}), 40)
        await bench.ready()
        assert bench.states_of("gpu1") == [S.STARTING, S.READY]
        assert second.restarts == 0


async def test_a_server_that_never_starts_is_given_up_and_tried_slowly(tmp_path: Path) -> None:
    chosen = settings(
        simulator={"start_failure": "no luck"},
        servers={"starts_limit": 3, "slow_retry_s": 0.2},
    )
    async with running(chosen, tmp_path) as bench:
        server = bench.fleet.servers["gpu0"]
        await asyncio.wait_for(server.until({S.FAILED}), 40)
        assert bench.states_of("gpu0") == [S.STARTING, S.BACKOFF, S.STARTING, S.BACKOFF, S.STARTING, S.FAILED]
        assert isinstance(server, ManagedServer) and "no luck" in server.reason
        await asyncio.wait_for(server.until({S.STARTING}), 40)
        await asyncio.wait_for(server.until({S.FAILED}), 40)


async def test_completed_requests_keep_a_crashing_server_from_being_given_up(tmp_path: Path) -> None:
    async with running(settings(servers={"starts_limit": 2, "slow_retry_s": 60}), tmp_path) as bench:
        (server,) = await bench.ready()
        for _ in range(3):
            server.progress()
            os.kill(server.pid or 0, signal.SIGKILL)
            await asyncio.wait_for(server.until({S.BACKOFF}), 40)
            await bench.ready()
        assert S.FAILED not in bench.states_of("gpu0")


async def test_a_gpu_server_that_sees_no_gpu_is_not_ready(tmp_path: Path) -> None:
    async with running(settings(simulator={"gpu_found": False}), tmp_path) as bench:
        server = bench.fleet.servers["gpu0"]
        await asyncio.wait_for(server.until({S.BACKOFF}), 40)
        assert "does not see GPU" in server.reason
        assert S.READY not in bench.states_of("gpu0")


async def test_a_server_that_is_too_slow_to_start(tmp_path: Path) -> None:
    chosen = settings(simulator={"discovery_s": 60}, servers={"start_timeout_s": 0.5, "stop_grace_s": 0.3})
    async with running(chosen, tmp_path) as bench:
        server = bench.fleet.servers["gpu0"]
        await asyncio.wait_for(server.until({S.BACKOFF}), 40)
        assert "not ready within 0.5 s" in server.reason


async def test_slots_are_halved_until_the_model_is_wholly_in_vram_and_remembered(tmp_path: Path) -> None:
    big = {"name": "big", "vram_bytes": 60 * GIB, "kv_bytes_per_token": GIB // 1024}  # 8 GiB of cache per slot
    chosen = settings(simulator={"models": [big, {"name": "tiny"}]})
    facts = DictFacts()
    async with running(chosen, tmp_path, facts=facts) as bench:
        (server,) = await bench.ready()
        await server.load(Profile("big", 8192))
        assert (server.slots, server.loaded) == (2, Profile("big", 8192))
        assert server.load_s is not None and server.restarts == 0
        await server.load(TINY)
        assert (server.slots, server.loaded) == (8, TINY)
        with pytest.raises(ModelError, match="does not fit gpu0") as caught:
            await server.load(Profile("big", 32768))
        assert caught.value.code == "does_not_fit" and server.loaded is None
    async with running(chosen, tmp_path, facts=facts) as bench:
        (server,) = await bench.ready()
        await server.load(Profile("big", 8192))
        assert server.slots == 2
        assert bench.states_of("gpu0").count(S.STARTING) == 2  # straight to what is known to fit


async def test_a_server_takes_the_slots_that_it_is_to_have_and_goes_back_where_they_do_not_fit(tmp_path: Path) -> None:
    big = {"name": "big", "vram_bytes": 40 * GIB, "kv_bytes_per_token": GIB // 4096}  # 2 GiB of cache per slot
    facts, profile = DictFacts(), Profile("big", 8192)
    async with running(settings(simulator={"models": [big]}), tmp_path, facts=facts) as bench:
        (server,) = await bench.ready()
        tuned = server.tuning
        assert tuned is not None and tuned.fresh and (tuned.process_slots, tuned.first_slots(profile)) == (8, 8)
        await server.load(profile)
        assert (server.slots, tuned.fresh, tuned.vram_bytes) == (8, False, 56 * GIB)
        tuned.prefer((16, 8))
        await server.load(profile)  # the same profile, and another process
        assert (server.slots, tuned.process_slots, tuned.vram_bytes) == (16, 16, 72 * GIB)
        pid = server.pid
        tuned.use(6)
        assert (server.slots, tuned.process_slots, server.pid) == (6, 16, pid)  # the others stay free
        tuned.use(64)
        assert (server.slots, tuned.process_slots, server.pid) == (16, 16, pid)  # it has no more
        tuned.use(6)
        tuned.prefer((32, 16))
        await server.load(profile)
        assert (server.slots, server.loaded) == (16, profile)
        tuned.prefer((4, 16))
        await server.load(profile)
        assert server.slots == 4 and facts["slots/Simulated GPU 80GB/big/8192"] == "16"  # fits, not best
        await server.unload()
        await server.load(profile)  # as the watchdog does
        assert server.slots == 4
        assert server.restarts == 0 and S.BACKOFF not in bench.states_of("gpu0")
    off = settings(simulator={"models": [big]}, servers={"tune": False})
    async with running(off, tmp_path, facts=facts) as bench:
        (server,) = await bench.ready()
        await server.load(profile)
        assert server.tuning is None and server.slots == 8  # of 8, 4, 2 and 1, as ever


async def test_a_model_that_left_the_vram_wholly_or_partly_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings(), tmp_path) as bench:
        (server,) = await bench.ready()
        await server.load(TINY)
        [found] = await server.api.loaded(5)

        async def loaded(api: OllamaApi, timeout_s: float) -> list[LoadedModel]:
            return [found]

        monkeypatch.setattr(OllamaApi, "loaded", loaded)
        told = []
        for left in (found.size, found.size // 2, 0):
            found.size_vram = left
            told.append(await server.fallen_back())
    assert told == ["", *(f"only {gib} of 4.0 GiB of the model are in VRAM" for gib in ("2.0", "0.0"))]


async def test_a_missing_model(tmp_path: Path) -> None:
    async with running(settings(), tmp_path) as bench:
        (server,) = await bench.ready()
        with pytest.raises(ModelError) as caught:
            await server.load(Profile("absent", 8192))
        assert caught.value.code == "model_not_found" and server.loaded is None and server.ready


async def test_unload(tmp_path: Path) -> None:
    async with running(settings(servers={"idle_unload_s": 0.3}), tmp_path) as bench:
        (server,) = await bench.ready()
        await server.load(TINY)
        assert await server.api.loaded(5)
        await wait_for(lambda: server.loaded is None)  # idle
        await server.load(TINY)
        await server.unload()
        assert server.loaded is None and not await server.api.loaded(5)


async def test_strikes_restart_a_server(tmp_path: Path) -> None:
    async with running(settings(dispatch={"strikes": 2}), tmp_path) as bench:
        (server,) = await bench.ready()
        server.fault("stalled")
        assert server.ready
        server.fault("stalled again")
        await asyncio.wait_for(server.until({S.BACKOFF}), 40)
        assert "stalled again" in server.reason and len(server.ended) == 1
        await bench.ready()


async def test_a_server_that_does_not_answer_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obatchd.servers.server._HEALTH_TIMEOUT_S", 0.2)
    async with running(settings(servers={"stop_grace_s": 0.3}), tmp_path) as bench:
        (server,) = await bench.ready()
        frozen = server.pid or 0
        os.kill(frozen, signal.SIGSTOP)
        await asyncio.wait_for(server.until({S.BACKOFF}), 40)
        assert "health checks missed" in server.reason and not alive(frozen)
        assert len(server.ended) == 2  # SIGTERM, and SIGKILL after the grace
        await bench.ready()


async def test_drain_waits_for_what_is_in_flight_and_outlives_a_crash(tmp_path: Path) -> None:
    async with running(settings(servers={"drain_s": 0.2}), tmp_path) as bench:
        (server,) = await bench.ready()
        server.idle.clear()
        assert await server.drain("maintenance") is False
        assert server.state is S.DRAINING
        waiting = asyncio.create_task(server.drain("maintenance"))
        server.idle.set()
        assert await waiting is True
        os.kill(server.pid or 0, signal.SIGKILL)
        await asyncio.wait_for(server.until({S.BACKOFF}), 40)
        await asyncio.wait_for(server.until({S.DRAINING}), 40)
        server.resume()
        assert server.ready and not server.ended


async def test_restart_by_an_operator(tmp_path: Path) -> None:
    async with running(settings(), tmp_path) as bench:
        (server,) = await bench.ready()
        old = server.pid
        await server.restart("asked")
        assert not alive(old or 0)
        assert [time.time() - at_s < 10 for at_s in server.ended] == [True]
        await bench.ready()
        assert bench.states_of("gpu0") == [S.STARTING, S.READY, S.STOPPING, S.STOPPED, S.STARTING, S.READY]
        assert server.restarts == 0


async def test_restart_ends_a_long_pause(tmp_path: Path) -> None:
    chosen = settings(simulator={"start_failure": "no"}, servers={"starts_limit": 1, "slow_retry_s": 600})
    async with running(chosen, tmp_path) as bench:
        server = bench.fleet.servers["gpu0"]
        await asyncio.wait_for(server.until({S.FAILED}), 40)
        await asyncio.wait_for(server.restart("asked"), 10)
        assert bench.states_of("gpu0")[:3] == [S.STARTING, S.FAILED, S.STARTING]


async def test_the_next_start_ends_what_an_abandoned_fleet_left(tmp_path: Path) -> None:
    instance = str(tmp_path)
    code = (
        "import asyncio, sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']\n"
        "from pathlib import Path\n"
        "from fleet_support import running, settings\n"
        "from obatchd.jobs.model import Profile\n"
        "async def main():\n"
        "    async with running(settings(), Path(sys.argv[2]), instance=sys.argv[2]) as bench:\n"
        "        (server,) = await bench.ready()\n"
        "        await server.load(Profile('tiny', 8192))\n"
        "        print('loaded', flush=True)\n"
        "        await asyncio.sleep(3600)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), instance]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert await asyncio.to_thread(daemon.stdout.readline) == b"loaded\n"
        left = [process.pid for process in marked(instance)]
        daemon.kill()
    assert len(left) >= 2
    stranger = subprocess.Popen(["sleep", "60"], env={**os.environ, "OBATCH_INSTANCE": instance + "x"})
    try:
        async with running(settings(), tmp_path, instance=instance) as bench:
            assert not any(alive(pid) for pid in left)
            await bench.ready()
        assert alive(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


def test_sweep_finds_nothing_on_a_clean_machine(tmp_path: Path) -> None:
    assert sweep(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("servers", "count"), [({}, 0), ({"cpu_servers": 0}, 0), ({"cpu_servers": 1}, 1)], ids=["default", "none", "one"]
)
async def test_a_head_without_gpus_waits_for_hosts(tmp_path: Path, servers: dict[str, int], count: int) -> None:
    head = settings("none", servers=servers, cluster={"listen": "127.0.0.1:7700"})
    async with running(head, tmp_path) as bench:
        assert len(bench.fleet.servers) == count
        assert bench.fleet.all == bench.fleet.servers


async def test_cpu_servers_where_there_is_nothing_else(tmp_path: Path) -> None:
    async with running(settings("none", servers={"cpu_servers": 2}), tmp_path) as bench:
        servers = await bench.ready()
        assert [server.id for server in servers] == ["cpu0", "cpu1"]
        assert all(server.gpu_label == "cpu" and server.slots == 4 for server in servers)
        options = servers[0].load_options(TINY)
        assert options["num_ctx"] == 8192 and options["num_thread"] >= 1
        await servers[0].load(TINY)
        assert servers[0].loaded == TINY


async def test_groups(tmp_path: Path) -> None:
    chosen = settings("simulated:3", servers={"group": [{"gpus": [0, 1]}]})
    async with running(chosen, tmp_path) as bench:
        servers = await bench.ready()
        assert [server.id for server in servers] == ["gpu2", "group0"]
        assert servers[1].gpu_label == ",".join(gpu.uuid for gpu in bench.probe.gpus[:2])
        await servers[1].load(TINY)
        assert servers[1].loaded == TINY


async def test_remote_servers_are_used_and_never_started_or_ended(tmp_path: Path) -> None:
    async with running(settings("simulated:2"), tmp_path / "host") as host:
        there = await host.ready()
        addresses = {server.base_url.removeprefix("http://"): index for index, server in enumerate(there)}
        limits = {"remote_slots": 3, "starts_limit": 1000}  # the host may take long to come back
        chosen = settings("none", servers=limits, ollama_instances=addresses)
        async with running(chosen, tmp_path / "client") as bench:
            servers = await bench.ready()
            assert [server.kind for server in servers] == ["remote", "remote"]
            assert [server.id for server in servers] == [f"remote-{a.replace(':', '-')}" for a in addresses]
            assert servers[0].slots == 3 and servers[0].pid is None
            await servers[0].load(TINY)
            assert servers[0].loaded == TINY and servers[0].load_options(TINY) == {"num_ctx": 8192}
            await host.fleet.servers["gpu0"].restart("asked")
            await asyncio.wait_for(servers[0].until({S.BACKOFF, S.READY}), 40)
            await host.ready()
            await bench.ready()
        assert all(alive(server.pid or 0) for server in there)


async def test_a_remote_server_that_cannot_be_reached_waits(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    async with running(settings("none", ollama_instances={address: 0}), tmp_path) as bench:
        server: Server = next(iter(bench.fleet.servers.values()))
        await asyncio.wait_for(server.until({S.BACKOFF}), 40)
        assert f"{address} cannot be reached: Connection refused." in server.reason


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"use": "none", "servers": {"ollama": "/nonexistent/ollama"}}, ServerError, "Install Ollama"),
        ({"use": "none", "servers": {"cpu_servers": 0}}, ConfigError, "no server"),
        ({"servers": {"listen": "192.0.2.1"}}, ServerError, "servers.listen"),
        ({"servers": {"group": [{"gpus": [0, 7]}]}}, ConfigError, "no GPU '7'"),
        ({"servers": {"environment": {"OLLAMA_HOST": "0.0.0.0"}}}, ConfigError, "OLLAMA_HOST"),
    ],
)
async def test_a_fleet_that_cannot_be(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        async with running(settings(**changes), tmp_path):  # type: ignore[arg-type]
            pass


async def test_a_fleet_that_looks_around_no_more_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(fleet, "OllamaApi", broken)
    async with running(settings(), tmp_path) as bench, asyncio.timeout(10):
        while not bench.failures:
            await asyncio.sleep(0.01)
        assert bench.failures == ["fleet-look: RuntimeError: a defect"]


async def test_servers_that_others_can_reach_are_a_notice(tmp_path: Path) -> None:
    async with running(settings(servers={"listen": "0.0.0.0"}), tmp_path) as open_to_all:
        assert any("0.0.0.0" in words and "no authentication" in words for words in open_to_all.fleet.notices)


async def test_foreign_processes_on_a_gpu_are_reported_and_left_alone(tmp_path: Path) -> None:
    async with running(settings(), tmp_path / "theirs", instance="theirs" + str(tmp_path)) as theirs:
        (other,) = await theirs.ready()
        # By the timeline, because the two stand-in servers would overwrite each other's load on the one GPU.
        write_script(tmp_path / "simulator", {"0": [GpuEvent("foreign", pid=other.pid or 0)]})
        mine: Settings = settings()
        async with running(mine, tmp_path, instance="ours" + str(tmp_path)) as ours:
            (server,) = ours.fleet.servers.values()
            await wait_for(lambda: server.state is S.DRAINING)  # it works again when they leave
            assert alive(server.foreign[0].pid)
            [notice] = [words for words in ours.fleet.notices if "GPU of gpu0" in words]
            assert f"(pid {server.foreign[0].pid}, " in notice
        assert alive(other.pid or 0)


async def test_gpus_that_the_environment_keeps_from_us_get_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obatchd.daemon.machine.open_nvml", partial(SimulatedGpus, tmp_path, 3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    async with running(settings("all"), tmp_path) as bench:
        assert list(bench.fleet.servers) == ["gpu2"]
        assert "CUDA_VISIBLE_DEVICES=2 gives obatchd 1 of 3 GPUs; the others get no server." in bench.fleet.notices
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    async with running(settings("all"), tmp_path) as bench:
        assert list(bench.fleet.servers) == ["cpu0"]
        assert "CUDA_VISIBLE_DEVICES= gives obatchd 0 of 3 GPUs; the others get no server." in bench.fleet.notices
    with pytest.raises(ConfigError, match=r"gpus.use: GPU '0' is here, but CUDA_VISIBLE_DEVICES="):
        async with running(Settings.model_validate(settings().model_dump() | {"gpus": {"use": [0]}}), tmp_path):
            pass


@pytest.mark.parametrize(
    "changes", [{"gpus": {"use": [0]}}, {"servers": {"group": [{"gpus": [0, 1]}]}}, {"servers": {"cpu_servers": 0}}]
)
async def test_gpus_that_the_settings_ask_for_are_awaited(
    tmp_path: Path, changes: dict[str, dict[str, object]]
) -> None:
    tables = settings("simulated:2").model_dump()
    for table, values in changes.items():
        tables[table] |= values
    tables["servers"]["ollama"] = "simulator"
    write_script(tmp_path / "simulator", {"0": [GpuEvent("no_driver")]})
    async with running(Settings.model_validate(tables), tmp_path) as bench:
        assert bench.fleet.servers == {} and bench.fleet.lacks_gpus
