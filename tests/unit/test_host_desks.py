"""What the head asks a host about its models and GPUs, over a session in memory."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from operations_support import Desk, desk
from session_support import Kept, sessions

from obatchd.cli.doctor import host_report, store_checks
from obatchd.cluster.head.standing import findings_of
from obatchd.cluster.host.desks import doctor
from obatchd.cluster.host.desks.doctor import HostDoctorDesk
from obatchd.cluster.host.desks.gpus import GpuDesk
from obatchd.cluster.host.desks.models import ModelDesk
from obatchd.cluster.session import Session
from obatchd.documents.gpus import GpuDetails, GpuEntry, GpuEventEntry, Released
from obatchd.documents.history import GpuHistory
from obatchd.documents.hosts import Finding
from obatchd.documents.models import PullProgress
from obatchd.errors import ConfigError, ControlError, HostError, ModelError, NotFoundError
from obatchd.gpucare.cards import GpuCards
from obatchd.gpucare.past import Past
from obatchd.ollama.api import StoredModel
from obatchd.servers import environment
from obatchd.servers.program import Ollama
from obatchd.servers.stores.known import ModelInfo
from obatchd.settings.current import Current
from obatchd.settings.settings import Settings
from obatchd.tasks import TaskSet


class Keeper:
    """The part of :class:`obatchd.servers.models.ModelKeeper` that the desk asks."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.pulls_given_up = 0

    async def ensure(self, model: str, *, by_admin: bool = False) -> ModelInfo:
        if model == "none":
            raise ModelError("Model none is not in the store.", code="model_not_found")
        self.did.append(f"ensure {model} {by_admin}")
        return ModelInfo(model, "55be", "Q4", "8B", 8192, ["completion"], 5)

    async def listed(self) -> list[StoredModel]:
        return [StoredModel("m:latest", "55be", size=5)]

    async def show(self, model: str, *, verbose: bool) -> dict[str, msgspec.Raw] | None:
        return {"template": msgspec.Raw(b'"{{ .Prompt }}"')} if model == "m" else None

    async def pull(self, name: str) -> AsyncGenerator[PullProgress, None]:
        try:
            for done in (1, 2, 3):
                yield PullProgress(name, "gpu0", "pulling", done, 3, done == 3)
        finally:
            self.pulls_given_up += 1

    async def remove(self, name: str) -> None:
        self.did.append(f"remove {name}")

    def forget(self, model: str) -> None:
        self.did.append(f"forget {model}")


@contextlib.asynccontextmanager
async def head_of(desks: dict[str, object], tasks: TaskSet) -> AsyncIterator[Session[Any]]:
    """The head's session with a host that has these desks."""
    head, host = sessions(Kept(), Kept(), of_host=desks)
    both = [tasks.start(session.run(), f"session {session.peer}") for session in (head, host)]
    try:
        yield head
    finally:
        head.end("the test is over")
        for task in both:
            await task


class Tasks:
    """Implements :class:`obatchd.tasks.TaskOwner`."""

    def task_failed(self, name: str, error: BaseException) -> None:
        raise AssertionError(name) from error


@pytest.fixture
def tasks() -> TaskSet:
    return TaskSet(Tasks())


async def test_models_of_a_host_are_seen_had_and_removed(tasks: TaskSet) -> None:
    keeper: Any = Keeper()
    async with head_of({"models": ModelDesk(keeper)}, tasks) as head:
        info = await head.call("models.ensure", ModelInfo, 5.0, model="m", by_admin=True)
        assert (info.digest, info.store) == ("55be", "local")
        [entry] = await head.call("models.listed", list[StoredModel], 5.0)
        assert (entry.model, entry.size) == ("m:latest", 5)
        shown = await head.call("models.show", bytes, 5.0, model="m")
        assert shown == b'{"template":"{{ .Prompt }}"}'
        assert await head.call("models.show", bytes, 5.0, model="x") == b""
        await head.call("models.remove", type(None), 5.0, name="m")
        with pytest.raises(ModelError, match=r"^Model none is not in the store\.$") as caught:
            await head.call("models.ensure", ModelInfo, 5.0, model="none")
    assert caught.value.code == "model_not_found"
    assert keeper.did == ["forget m", "ensure m True", "remove m", "forget none"]


async def test_a_pull_is_told_step_by_step_and_ends_with_whoever_asked(tasks: TaskSet) -> None:
    keeper: Any = Keeper()
    async with head_of({"models": ModelDesk(keeper)}, tasks) as head:
        steps = [step async for step in head.stream("models.pull", PullProgress, name="m")]
        assert [(step.completed_bytes, step.done) for step in steps] == [(1, False), (2, False), (3, True)]
    assert keeper.pulls_given_up == 1


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with desk(monkeypatch, tmp_path) as made:
        yield made


async def test_gpus_of_a_host_are_taken_out_of_use_and_lent_from_the_head(rig: Desk, tasks: TaskSet) -> None:
    cards = GpuCards(rig.policy, rig.probe)
    rig.read()
    async with head_of({"gpus": GpuDesk(cards, Past(rig.policy, cards))}, tasks) as head:
        bad = await head.call("gpus.quarantine", GpuEntry, 5.0, name="1", reason="it smells")
        assert (bad.uuid, bad.health, bad.reason) == ("GPU-1", "quarantine", "it smells")
        with pytest.raises(ControlError, match=r"^GPU 1 is in quarantine already$"):
            await head.call("gpus.quarantine", GpuEntry, 5.0, name="GPU-1", reason="")
        details = await head.call("gpus.one", GpuDetails, 5.0, name="1")
        assert details.quarantine is not None and details.quarantine.by == "administrator"
        assert (await head.call("gpus.release", Released, 5.0, name="1")).uuid == "GPU-1"
        assert (await head.call("gpus.lend", GpuEntry, 5.0, name="0", for_s=60.0)).lent_until
        assert not (await head.call("gpus.take_back", GpuEntry, 5.0, name="0")).lent_until
        assert (await head.call("gpus.share", GpuEntry, 5.0, name="0", shared=True)).shares_unknown
        kinds = [event.kind for event in await head.call("gpus.events", list[GpuEventEntry], 5.0, name=None, limit=10)]
        assert kinds == ["quarantine", "release", "lend", "return", "share"]
        past = await head.call("gpus.history", GpuHistory, 5.0, since_s=0.0, until_s=3600.0, points=6, name="0")
        assert len(past.at_s) <= 6
        with pytest.raises(NotFoundError, match="no GPU 7"):
            await head.call("gpus.lend", GpuEntry, 5.0, name="7", for_s=60.0)


def doctor_desk(directory: Path, *command: str, **settings: Any) -> HostDoctorDesk:
    """Of a host with stand-ins, one server and a directory with room; ``command`` in place of its checks."""
    fleet: Any = SimpleNamespace(servers={"gpu0": SimpleNamespace(base_url="http://127.0.0.1:1")})
    current = Current(Settings.model_validate({"gpus": {"use": "simulated:1"}, **settings}))
    return HostDoctorDesk(current, directory, fleet, *([command] if command else []))


async def found_at(head: Session[Any], name: str = "node07") -> dict[str, Finding]:
    """What a host of this session finds, by what it is about."""
    host: Any = SimpleNamespace(name=name, session=head, reason="")
    return {one.about: one for one in (await findings_of(host)).findings}


async def test_the_checks_of_doctor_run_on_the_host_and_their_commands_are_for_the_head(
    tmp_path: Path, tasks: TaskSet
) -> None:
    store = {"servers": {"models_dir": str(tmp_path / "models")}}
    desk_of_host = doctor_desk(tmp_path, disk={"min_free_bytes": 2**62}, **store)
    async with head_of({"doctor": desk_of_host}, tasks) as head:
        found = await found_at(head)
    assert list(found) == ["gpus", "ollama", "models", "ports", "others", "clock", "disk"]
    assert found["gpus"].text == "gpus = simulated:1: the driver is not needed"
    assert str(tmp_path / "models") in found["models"].text, "settings of the host count"
    assert found["disk"].level == "warn" and "too little for logs" in found["disk"].text
    assert found["disk"].next_command == f"ssh node07 'df -h {tmp_path}; df -i {tmp_path}'"


_FOUND = """printf '{"level":"ok","about":"%s","text":"well"}\\n' gpus ollama; printf '{"level":"ok","ab'; """


async def test_checks_that_hang_or_end_by_a_defect_are_told_as_such(
    tmp_path: Path, tasks: TaskSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_LIMIT_S", 2.0)
    late = "its checks have not ended within 2 s: a disk or the driver hangs in "
    async with head_of({"doctor": doctor_desk(tmp_path, "sleep", "60")}, tasks) as head:
        hung = (await found_at(head))["doctor"]
    assert (hung.level, hung.text) == ("bad", late + "the first check")
    assert hung.next_command.startswith("ssh node07 'sudo dmesg")
    async with head_of({"doctor": doctor_desk(tmp_path, "sh", "-c", _FOUND + "sleep 60")}, tasks) as head:
        found = await found_at(head)
    assert list(found) == ["gpus", "ollama", "doctor"], "what was found before is told"
    assert found["doctor"].text == late + "the check after ollama"
    monkeypatch.setattr(doctor, "_LIMIT_S", 20.0)
    for script in ("", "echo no JSON; ", _FOUND + "false || "):
        desk_of_host = doctor_desk(tmp_path, "sh", "-c", script + "{ echo no such module >&2; exit 1; }")
        async with head_of({"doctor": desk_of_host}, tasks) as head:
            assert (await found_at(head))["doctor"].text == "its checks ended by a defect of obatchd: no such module"
    async with head_of({}, tasks) as head:
        assert "update obatchd" in (await found_at(head))["doctor"].text, "a host of an earlier version"


async def test_beside_checks_that_cannot_be_killed_no_others_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_LIMIT_S", 0.2)
    stuck = doctor_desk(tmp_path, "sleep", "60")
    open_before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as kernel:
        kernel.setattr(os, "killpg", lambda group, number: None)
        kernel.setattr(doctor, "_KILLED_S", 0.2)
        assert [one.level for one in await stuck.examine()] == ["bad"]
        assert len(os.listdir("/proc/self/fd")) <= open_before + 1, "at most what asyncio watches the process with"
        told = set()
        for _ in range(2):
            with pytest.raises(HostError, match=r"still hang \(pid \d+\).*sudo cat /proc/\d+/stack") as caught:
                await stuck.examine()
            told.add(caught.value.message)
    [message] = told  # the same process each time
    os.kill(int(message.partition("pid ")[2].partition(")")[0]), signal.SIGKILL)
    assert [one.level for one in await stuck.examine()] == ["bad"], "it has ended, so others begin"


def test_the_store_of_a_host_without_a_home_is_that_of_its_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless(path: str | Path) -> Path:
        raise ConfigError("the home directory is not known")

    monkeypatch.setattr(store_checks, "expanded", homeless)
    monkeypatch.setattr(environment, "expanded", homeless)
    settings = Settings.model_validate({"gpus": {"use": "simulated:1"}})
    found = {one.about: one for one in host_report.examine(settings, tmp_path, [])}
    used = environment.models_dir(settings.servers, Ollama(settings.servers.ollama), tmp_path)
    assert found["models"].text.startswith(f"{used}, ")


class LyingDoctor:
    """Says something without end."""

    async def examine(self) -> list[Finding]:
        return [Finding("ok", "disk", "x" * 4001)]


async def test_a_finding_without_end_is_no_answer(tasks: TaskSet) -> None:
    async with head_of({"doctor": LyingDoctor()}, tasks) as head:
        assert "was cut off" in (await found_at(head))["doctor"].text
