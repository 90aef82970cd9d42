"""``obatchd host`` as its users run it, with stand-in servers and GPUs, at a stand-in head."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import toml
from daemon_support import BIN, digest
from head_stand_in import CREDENTIAL, SECRET, WAIT_S, Came, StandInHead, until
from process_support import alive

from obatchd.cluster.messages import Busy, KillWorker, Refused, Terms
from obatchd.jobs.model import Profile
from obatchd.servers.claims import GpuClaims
from obatchd.servers.sweep import marked, sweep

_TINY = Profile("tiny", 4096)


class Machine:
    """One machine with ``obatchd host``, whose files are as ``obatchd-join`` writes them."""

    def __init__(self, root: Path, head: StandInHead) -> None:
        self.directory = root / "host"
        self.log_file = root / "log"
        self.directory.mkdir(parents=True, mode=0o700)
        self.write(head)
        (self.directory / "credential").write_text(CREDENTIAL + "\n")
        (self.directory / "credential").chmod(0o600)
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, head: StandInHead, **tables: Any) -> None:
        """The host's file."""
        cluster = {"head": head.address, "fingerprint": head.fingerprint, "name": "node01"}
        settings = {
            "log_level": "debug", "drain_s": 5, "cluster": cluster, "gpus": {"use": "simulated:2", "poll_s": 0.1},
            **tables,
        }  # fmt: skip
        (self.directory / "host.toml").write_text(toml.dumps(settings))

    def launch(
        self, *arguments: str, variables: Mapping[str, str] | None = None, descriptors: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OBATCH", "OLLAMA_"))}
        simulator = {"models": [{"name": "tiny"}]}
        more = {"HOME": str(self.directory.parent), "OBATCHD_SIMULATOR": json.dumps(simulator)}
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                [BIN / "obatchd", "host", "--dir", self.directory, *arguments],
                env=kept | more | dict(variables or {}), pass_fds=descriptors,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return self.process

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    @property
    def instance(self) -> str:
        return (self.directory / "instance").read_text().strip()

    async def exit_code(self) -> int:
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, WAIT_S)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if (self.directory / "instance").exists():
            sweep(self.instance)


@pytest.fixture
async def head(tmp_path: Path) -> AsyncIterator[StandInHead]:
    found = await StandInHead(tmp_path).start()
    yield found
    await found.close()


@pytest.fixture
async def host(tmp_path: Path, head: StandInHead) -> AsyncIterator[Machine]:
    found = Machine(tmp_path / "node01", head)
    yield found
    found.end()
    print(found.log[-8000:])


async def _ready(head: StandInHead) -> Came:
    came = await head.next()
    await came.ready(2)
    return came


async def test_a_host_comes_serves_and_ends(host: Machine, head: StandInHead) -> None:
    process = host.launch()
    came = await _ready(head)
    assert came.hello is not None and (came.hello.name, came.hello.instance) == ("node01", host.instance)
    assert {news.slots for news in came.servers.values()} == {2}  # as the head wants it, from the first start
    assert came.host is not None and len(came.host.gpus.gpus) == 2
    await came.load("gpu0", _TINY)
    assert came.servers["gpu0"].loaded == _TINY and came.servers["gpu0"].loads == 1  # by the time of the answer
    answered = await came.ask("gpu0", "one", "two", "three")
    assert all(item.succeeded for item in answered)
    texts = {item.line: json.loads(item.record)["response"] for item in answered}
    assert texts[2].startswith(digest("two"))
    process.send_signal(signal.SIGTERM)
    assert await host.exit_code() == 0
    assert came.host.leaving
    await until(lambda: bool(came.over), "the session ends")
    assert not marked(host.instance)


async def test_a_host_that_is_stopped_waits_for_answers_but_not_at_a_second_signal(
    host: Machine, head: StandInHead
) -> None:
    process = host.launch()
    came = await _ready(head)
    came.session.say(Busy("gpu0", True))
    await came.load("gpu1", _TINY)  # and so it has heard that
    process.send_signal(signal.SIGTERM)
    await until(lambda: came.host is not None and bool(came.host.leaving), "it says that it leaves")
    assert process.poll() is None and not came.over
    came.session.say(Busy("gpu0", False))
    assert await host.exit_code() == 0
    process = host.launch()
    again = await head.next(lambda new: new is not came and len(new.servers) == 2)
    await again.ready(2)
    again.session.say(Busy("gpu0", True))
    await again.load("gpu1", _TINY)
    process.send_signal(signal.SIGTERM)
    await until(lambda: again.host is not None and bool(again.host.leaving), "it says that it leaves")
    process.send_signal(signal.SIGTERM)
    assert await host.exit_code() == 0
    assert "host_drain_skipped" in host.log


async def test_settings_are_read_again_and_those_of_the_head_count_at_once(host: Machine, head: StandInHead) -> None:
    process = host.launch()
    came = await _ready(head)
    came.session.say(
        Terms({"servers": {"slots": 3}, "": {"context_length": 4096}, "gpu_health": {"repeats": 9}}, 3600.0)
    )
    await until(lambda: came.host is not None and any("servers.slots" in words for words in came.host.notices), "told")
    assert "changed=gpu_health.repeats needs_restart=servers.slots" in host.log
    host.write(head, drain_s=1, log_level="info")
    process.send_signal(signal.SIGHUP)
    await until(lambda: "changed=drain_s,log_level" in host.log, "the file is read again")
    host.write(head, drain_s=-1)
    process.send_signal(signal.SIGHUP)
    await until(lambda: "reload_refused" in host.log, "a bad file is refused")
    assert process.poll() is None


async def test_servers_and_models_stay_while_the_head_is_away(host: Machine, head: StandInHead) -> None:
    host.launch()
    came = await _ready(head)
    await came.load("gpu1", _TINY)
    before = {name: news.pid for name, news in came.servers.items()}
    await head.close()
    await head.start()
    again = await head.next(lambda new: new is not came and len(new.servers) == 2)
    await again.ready(2)
    assert {name: news.pid for name, news in again.servers.items()} == before
    assert again.servers["gpu1"].loaded == _TINY and again.servers["gpu1"].loads == 1
    assert all(item.succeeded for item in await again.ask("gpu1", "still here"))


async def test_a_worker_that_is_killed_is_followed_by_another_one(host: Machine, head: StandInHead) -> None:
    host.launch()
    came = await _ready(head)
    await came.load("gpu0", _TINY)
    first = came.workers["gpu0"]
    came.session.say(KillWorker(first))
    await until(lambda: came.workers["gpu0"] != first, "another worker runs")
    assert [end.channel for end in came.ended] == [first]
    assert all(item.succeeded for item in await came.ask("gpu0", "by the other"))


async def test_a_killed_host_leaves_nothing_that_its_next_start_does_not_end(host: Machine, head: StandInHead) -> None:
    process = host.launch()
    came = await _ready(head)
    await came.load("gpu0", _TINY)
    left = [each.pid for each in marked(host.instance)]
    process.kill()
    process.wait()
    host.launch()
    again = await head.next(lambda new: new is not came and bool(new.servers))
    await again.ready(2)
    assert not any(alive(pid) for pid in left)
    assert again.servers["gpu0"].loaded is None


async def test_a_refusal_for_good_is_told_once(host: Machine, head: StandInHead) -> None:
    head.refusal = Refused("version", "it runs obatchd 0.1: type pip install obatchd==1.0", final=True)
    host.launch()
    await until(lambda: "head_refuses" in host.log, "the refusal is in the log")
    assert "pip install obatchd==1.0" in host.log and host.log.count("head_refuses") == 1


@pytest.mark.parametrize(
    ("credential", "fingerprint", "words"),
    [("wrong", "", "does not know this host"), (CREDENTIAL, "sha256:" + "0" * 64, "another certificate")],
)
async def test_who_is_not_known_is_told_what_to_type(
    host: Machine, head: StandInHead, credential: str, fingerprint: str, words: str
) -> None:
    (host.directory / "credential").write_text(credential)
    if fingerprint:
        settings = toml.loads((host.directory / "host.toml").read_text())
        settings["cluster"]["fingerprint"] = fingerprint
        (host.directory / "host.toml").write_text(toml.dumps(settings))
    host.launch()
    await until(lambda: "head_refuses" in host.log, "the refusal is in the log")
    assert words in host.log and "obatchctl hosts code" in host.log and CREDENTIAL not in host.log
    assert not head.came and head.tried == (not fingerprint)  # to a stranger nothing is shown


async def test_a_gpu_that_another_obatchd_has_is_not_taken(host: Machine, head: StandInHead) -> None:
    host.launch()
    await _ready(head)
    assert host.process is not None
    host.process.kill()
    host.process.wait()
    claims = GpuClaims(host.directory)
    await claims.take(head.came[-1].servers["gpu1"].gpus)
    host.launch()
    assert await host.exit_code() == 1
    assert f"pid {os.getpid()}" in host.log and "gpus.exclude" in host.log
    await claims.release()


class Lent(Machine):
    """A machine that is lent for a while: it has no file and no credential, but an enrolment."""

    def __init__(self, root: Path, head: StandInHead) -> None:
        super().__init__(root, head)
        self.enrolment = root / "enrolment"
        (self.directory / "credential").unlink()
        (self.directory / "host.toml").write_text('log_level = "debug"\ngpus = "simulated:1"\n')
        self.enrolment.write_text(head.link)
        self.enrolment.chmod(0o600)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        variables = {"OBATCH_HOST_ALLOCATION": "Ray node 3f"}
        return self.launch("--enrol", str(self.enrolment), "--name", "node02", *arguments, variables=variables)


@pytest.fixture
async def lent(tmp_path: Path, head: StandInHead) -> AsyncIterator[Lent]:
    found = Lent(tmp_path / "node02", head)
    yield found
    found.end()
    print(found.log[-8000:])


async def test_a_host_joins_by_an_enrolment_and_comes_back_without_it(lent: Lent, head: StandInHead) -> None:
    until_s = time.time() + 7200
    lent.start("--until", str(until_s))
    came = await head.next()
    assert came.hello is not None and (came.hello.name, came.hello.allocation) == ("node02", "Ray node 3f")
    [asked] = head.joined
    assert asked["name"] == "node02" and 7000 < asked["lasts_s"] <= 7200
    assert (lent.directory / "credential").stat().st_mode & 0o777 == 0o600
    assert SECRET not in lent.log and CREDENTIAL not in lent.log
    assert lent.process is not None
    lent.process.send_signal(signal.SIGUSR1)
    assert await lent.exit_code() == 0
    assert came.host is not None and came.host.leaving == "its time limit is near"
    head.secrets.clear()  # the code was for one use
    lent.start()
    await head.next(lambda new: new is not came and new.hello is not None and new.hello.name == "node02")
    assert "enrolment_not_used" in lent.log
    lent.process.send_signal(signal.SIGTERM)
    assert await lent.exit_code() == 0
    lent.launch()
    await head.next(lambda new: len(head.came) > 3 and new.hello is not None and new.hello.name == "node02")


async def test_an_enrolment_may_come_by_a_descriptor(lent: Lent, head: StandInHead) -> None:
    reading, writing = os.pipe()
    os.write(writing, head.link.encode())
    os.close(writing)
    lent.launch("--enrol", f"fd:{reading}", "--name", "node02", descriptors=[reading])
    os.close(reading)
    await head.next(lambda came: came.hello is not None)


async def test_a_lent_host_that_is_not_known_any_more_ends_so_that_it_can_be_enrolled_again(
    lent: Lent, head: StandInHead
) -> None:
    lent.start()
    await head.next()
    head.credentials.clear()
    head.came[-1].session.end("revoked")
    assert await lent.exit_code() == 1
    assert not (lent.directory / "credential").exists()


async def test_a_lent_host_whose_head_stays_away_ends_well(lent: Lent, head: StandInHead) -> None:
    head.terms = Terms({}, 0.5)
    lent.start()
    await head.next()
    await head.close()
    assert await lent.exit_code() == 0
    assert "lease_over" in lent.log


def _used(lent: Lent, head: StandInHead) -> None:
    head.secrets.clear()


def _open_to_all(lent: Lent, head: StandInHead) -> None:
    lent.enrolment.chmod(0o644)


def _no_link(lent: Lent, head: StandInHead) -> None:
    lent.enrolment.write_text("a word")


def _no_file(lent: Lent, head: StandInHead) -> None:
    lent.enrolment.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_used, "that code was used"), (_open_to_all, "chmod 600"), (_no_link, "no link"), (_no_file, "hosts enrol")],
)
async def test_an_enrolment_that_is_none_is_told(
    lent: Lent, head: StandInHead, spoil: Callable[[Lent, StandInHead], None], words: str
) -> None:
    spoil(lent, head)
    lent.start()
    assert await lent.exit_code() == 78
    assert words in lent.log and SECRET not in lent.log


def _no_credential(host: Machine) -> None:
    (host.directory / "credential").unlink()


def _no_head(host: Machine) -> None:
    (host.directory / "host.toml").write_text("")


def _bad_setting(host: Machine) -> None:
    (host.directory / "host.toml").write_text("[cluster]\nhaed = 1")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_no_credential, "obatchctl hosts code"), (_no_head, "obatchctl hosts code"), (_bad_setting, "cluster.head?")],
)
async def test_a_host_that_has_not_joined_says_what_to_do(
    host: Machine, spoil: Callable[[Machine], None], words: str
) -> None:
    spoil(host)
    host.launch()
    assert await host.exit_code() == 78
    assert words in host.log
