"""A head and its hosts as their users run them: programs of their own, certificates and codes as in life, loopback."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import toml
from daemon_support import Daemon, Job, ask_server
from line_support import Line, line_to
from port_support import free_ports
from process_support import BIN, Document, Running, alive, laid_over, wait_for

from obatchd.simulator.gpus import MACHINE
from obatchd.simulator.timeline import GpuEvent, write_script

# Python's own word of a process that was being started when its daemon was killed.
_NOT_BORN = re.compile(
    r"Traceback \(most recent call last\):\n"
    r"(?:  File \"(?:<string>|[^\"\n]*/multiprocessing/\w+\.py)\".*\n(?:    .*\n|\s*\^+\n)*)+"
    r"EOFError(?:: Ran out of input)?$",
    re.MULTILINE,
)
_JOIN_S, _HERE_S = 60.0, 60.0
_QUICK: Document = {
    "log_level": "debug",
    "drain_s": 5,
    "gpus": {"use": "simulated:2", "poll_s": 0.1},
}


class Head(Daemon):
    """A daemon with a door for hosts, and no server of its own. ``port`` is the door's."""

    def __init__(self, root: Path, config: Document | None = None, simulator: Document | None = None) -> None:
        self.port = free_ports(1)
        tables = dict(config or {})
        tables["cluster"] = {"listen": f"127.0.0.1:{self.port}", **tables.get("cluster", {})}
        tables["gpus"] = {"use": "none", **tables.get("gpus", {})}
        super().__init__(root, tables, simulator)

    def start(self, crash_at: str = "", **variables: str) -> Head:
        """Start it and wait until it answers and its door is open."""
        opened = len(self.events("host_door_open"))
        super().start(crash_at, **variables)
        wait_for(lambda: len(self.events("host_door_open")) > opened, 20, "the door is open")
        return self

    def code(self, through: int = 0) -> str:
        """A new link with which a host joins; ``through`` is the port on this machine that leads to the door."""
        link = str(self.client.post("hosts/codes")["link"])
        return link.replace(f":{self.port}", f":{through or self.port}", 1)

    def hosts(self) -> dict[str, Document]:
        """Every host that is known, by name, as ``obatchctl hosts --json`` has it."""
        return {host["name"]: host for host in self.client.get("hosts")["hosts"]}

    def server(self, server_id: str) -> Document:
        return next(server for server in self.servers() if server["id"] == server_id)

    def ready_servers(self) -> int:
        return sum(server["state"] == "ready" for server in self.servers())

    def has_ready(self, count: int, timeout_s: float = _HERE_S) -> Head:
        """Wait until so many servers are READY."""
        wait_for(lambda: self.ready_servers() == count, timeout_s, f"{count} servers are READY")
        return self


class HostProcess(Running):
    """One machine that lends its GPUs to a head: joins by a code and runs ``obatchd host``.

    Args:
        root: its own directory and everything beside it.
        head: to which it belongs.
        name: of the host.
        gpus: stand-ins that it has.
        line: through which it reaches the head; None: directly.
        number: of the loopback address 127.0.0.NUMBER that its servers listen on.
        config: laid over quick settings, table by table.
        simulator: configuration of its stand-in servers and GPUs.
    """

    def __init__(
        self,
        root: Path,
        head: Head,
        name: str,
        *,
        gpus: int = 2,
        line: Line | None = None,
        number: int = 2,
        config: Document | None = None,
        simulator: Document | None = None,
    ) -> None:
        super().__init__(root, "obatchd host", simulator)
        self.head = head
        self.name = name
        self.gpus = gpus
        self.line = line
        self.directory = root / "host"
        self.config_file = root / "host.toml"
        self._number = number
        self._own = laid_over(
            _QUICK,
            {"gpus": {"use": f"simulated:{gpus}"}, "servers": {"listen": f"127.0.0.{number}"}},
            config or {},
        )

    # Life.

    def environment(self) -> dict[str, str]:
        return super().environment() | {MACHINE: str(self._number)}

    def join(self, link: str = "") -> HostProcess:
        """Join by a code of the head, or by ``link``, and lay our settings over the file that this wrote."""
        link = link or self.head.code(self.line.port if self.line else 0)
        done = self.run_join(link)
        assert done.returncode == 0, done.stdout + done.stderr
        written = toml.loads(self.config_file.read_text())
        self.config_file.write_text(toml.dumps(laid_over(self._own, written)))
        return self

    def run_join(self, link: str) -> subprocess.CompletedProcess[str]:
        """``obatchd-join`` with this link."""
        command: list[str | Path] = [
            BIN / "obatchd-join", link, "--name", self.name, "--dir", self.directory, "--config", self.config_file,
        ]  # fmt: skip
        return subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=_JOIN_S, check=False
        )

    def launch(self, **variables: str) -> subprocess.Popen[bytes]:
        """Start ``obatchd host`` and return at once."""
        command: list[str | Path] = [BIN / "obatchd", "host", "--config", self.config_file, "--dir", self.directory]
        return self.run(command, self.environment() | variables)

    def start(self) -> HostProcess:
        """Start it and wait until the head has it."""
        self.launch()
        self.until(lambda: self.state() == "here", f"{self.name} is here")
        return self

    def kill(self) -> None:
        """SIGKILL its main process."""
        assert self.process is not None
        self.was_killed = True
        self.process.kill()
        self.process.wait(10)

    def freeze(self) -> None:
        """SIGSTOP to its main process alone, as a machine that swaps: connections stay, nothing is said."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def clean(self) -> None:
        """End everything of this host, however the test ended."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.thaw()
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            if self.process.poll() is None:
                self.kill()
        for left in self.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()

    def left(self) -> list[psutil.Process]:
        """Every process that was started by this host and lives, also those whose parent died."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("HOME") == str(self.root) and alive(process.pid):
                    found.append(process)
        return found

    # Looking.

    def state(self) -> str:
        """As the head has it; empty: it is not known there."""
        return str(self.head.hosts().get(self.name, {}).get("state", ""))

    def servers(self) -> list[Document]:
        """Its servers as the head has them."""
        return [server for server in self.head.servers() if server["id"].startswith(f"{self.name}.")]

    def loads(self) -> dict[str, int]:
        """How many models each of its stand-in servers has loaded since its process began."""
        return {server["id"]: len(ask_server(server["url"], "/simulator/state")["loads"]) for server in self.servers()}

    def received(self) -> list[Document]:
        """Every prompt that reached a slot of a server of this host."""
        return [
            request
            for server in self.servers()
            for request in ask_server(server["url"], "/simulator/requests")["requests"]
        ]

    def happens(self, gpu: int, *events: GpuEvent) -> None:
        """Let this befall one of its stand-in GPUs, and nothing else any of them."""
        write_script(self.directory / "simulator", {str(gpu): list(events)})

    def faults(self, *faults: Document) -> None:
        """Replace the faults of its stand-in servers."""
        for server in self.servers():
            ask_server(server["url"], "/simulator/faults", list(faults))


class Fleet(NamedTuple):
    """A head, and hosts that each reach it over a line of their own."""

    head: Head
    hosts: list[HostProcess]
    lines: list[Line]

    @property
    def servers(self) -> int:
        return sum(host.gpus for host in self.hosts)

    def job(self, name: str, asked: list[Document], timeout_s: float = 60) -> Job:
        """Hand these requests over, and wait until they are answered."""
        self.head.drop(f"{name}.jsonl", asked)
        return self.done(name, asked, timeout_s)

    def done(self, name: str, asked: list[Document], timeout_s: float = 60) -> Job:
        """Wait until a job is over, and check that each request was answered once and rightly."""
        job = self.head.done(f"{name}.jsonl", timeout_s)
        job.check(asked)
        return job

    def loads(self) -> dict[str, int]:
        """Models loaded so far, by server."""
        return {name: count for host in self.hosts for name, count in host.loads().items()}


@contextlib.contextmanager
def make_fleet(
    root: Path,
    hosts: int = 2,
    *,
    gpus: int = 2,
    config: Document | None = None,
    simulator: Document | None = None,
    of_hosts: Document | None = None,
) -> Iterator[Fleet]:
    """A head and hosts with every server READY, until the end of the block.

    Args:
        config: of the head.
        simulator: of the stand-in servers and GPUs of every host.
        of_hosts: what stands in their own files.
    """
    with contextlib.ExitStack() as stack:
        head = Head(root / "head", config)
        stack.callback(head.clean)
        head.start()
        made: list[HostProcess] = []
        lines: list[Line] = []
        for number in range(1, hosts + 1):
            name = f"node{number:02}"
            lines.append(stack.enter_context(line_to(head.port, free_ports(1))))
            made.append(
                HostProcess(
                    root / name, head, name, gpus=gpus, line=lines[-1], number=number + 1, config=of_hosts,
                    simulator=simulator,
                )
            )  # fmt: skip
            stack.callback(made[-1].clean)
            made[-1].join().launch()
        head.has_ready(hosts * gpus, _HERE_S + 3 * hosts * gpus)
        yield Fleet(head, made, lines)
        no_defects(head, *made)


def no_defects(*processes: Daemon | HostProcess) -> None:
    """None of them has logged a defect."""
    for process in processes:
        log = _NOT_BORN.sub("", process.log()) if process.was_killed else process.log()
        defects = [line for line in log.splitlines() if "Traceback" in line or "was never" in line]
        assert not defects, f"{process.root.name} logged a defect:\n" + "\n".join(defects)
