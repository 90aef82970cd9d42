"""Fixtures of all tests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import subprocess
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cluster_support import Head, HostProcess, no_defects
from daemon_support import CHANNEL, Daemon
from line_support import Line, line_to
from port_support import free_ports

_DAEMONS = pytest.StashKey[list[Daemon | HostProcess]]()  # those that a test has made
_SHOWN_CHARACTERS = 6000  # of the log of each of them, where the test fails
pytest.register_assert_rewrite("reload_burnin", "reload_gpus", "reload_parts", "reload_stage")


class _Loop(uvloop.Loop):
    """Says what a test left open after it is closed: uvloop closes nothing, and waits for ever, when its warning is an
    error."""

    def close(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            super().close()
        for warning in caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Daemon and workers run on uvloop, whose transports are not asyncio's: so do the tests of their parts."""
    return {"uvloop": _Loop}


def pytest_report_header() -> list[str]:
    """The seed, with which to try again what failed."""
    return [f"over a bad channel to workers: {CHANNEL}='{os.environ[CHANNEL]}'"] if os.environ.get(CHANNEL) else []


def pytest_collection_finish() -> None:
    """What is collected stays to the end: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if not os.environ.get("OBATCHD_TEST_LONG") and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: scripts/test-long runs it"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows how its daemons were and what they logged last."""
    report = yield
    for daemon in item.stash.get(_DAEMONS, []) if report.failed else ():
        ended = "was not started" if daemon.process is None else f"exit code so far: {daemon.process.poll()}"
        report.sections.append((f"log of {daemon.root.name} ({ended})", daemon.log()[-_SHOWN_CHARACTERS:]))
    return report


@pytest.fixture
def make_daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Daemon]]:
    """Makes daemons that are not started yet: ``make_daemon(config, simulator=…)``; see :class:`Daemon`."""
    made = request.node.stash.setdefault(_DAEMONS, [])

    def make(config: dict[str, Any] | str | None = None, **arguments: Any) -> Daemon:
        made.append(Daemon(tmp_path / f"d{len(made)}", config, **arguments))
        return made[-1]

    yield make
    _end(made)


@pytest.fixture
def make_head(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Head]]:
    """Makes heads that are not started yet: ``make_head(config, simulator)``; see :class:`Head`."""
    made = request.node.stash.setdefault(_DAEMONS, [])

    def make(config: dict[str, Any] | None = None, simulator: dict[str, Any] | None = None) -> Head:
        head = Head(tmp_path / f"head{len(made)}", config, simulator)
        made.append(head)
        return head

    yield make
    _end(made)


@pytest.fixture
def make_host(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., HostProcess]]:
    """Makes hosts that have neither joined nor started: ``make_host(head, name, …)``; see :class:`HostProcess`."""
    made = request.node.stash.setdefault(_DAEMONS, [])
    numbers = itertools.count(2)

    def make(head: Head, name: str = "", **arguments: Any) -> HostProcess:
        number = next(numbers)
        name = name or f"node{number - 1:02}"
        host = HostProcess(tmp_path / name, head, name, number=number, **arguments)
        made.append(host)
        return host

    yield make
    _end(made)


@pytest.fixture
def make_line() -> Iterator[Callable[[Head], Line]]:
    """Makes lines to the door of a head: see :class:`Line`."""
    with contextlib.ExitStack() as lines:
        yield lambda head: lines.enter_context(line_to(head.port, free_ports(1)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with these options."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / "disk"
        path.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount: {done.stderr.decode()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon without faults for all tests of a module that look at their own jobs only and leave it as it was."""
    daemon = Daemon(tmp_path_factory.mktemp("plain") / "d")
    try:
        yield daemon.start().ready()
    finally:
        _end([daemon])


def _end(daemons: list[Daemon | HostProcess]) -> None:
    for daemon in reversed(daemons):
        daemon.clean()
    no_defects(*daemons)


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """Starts daemons with every server READY."""

    def start(config: dict[str, Any] | str | None = None, **arguments: Any) -> Daemon:
        return make_daemon(config, **arguments).start().ready()

    return start
