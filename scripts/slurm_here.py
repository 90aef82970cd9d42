"""A Slurm of our own on this machine: munged, slurmctld and a slurmd for each of several node names, in one directory.

For the demo and the tests; needs root and Debian's slurmctld, slurmd, slurm-client and munge. All of it listens on
127.0.0.1, on ports that were free, and is ended by its process ids. By itself, until Ctrl-C:

    python scripts/slurm_here.py [--nodes 4] [--gpus 2] [--install]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
START_S, STOP_S = 30.0, 5.0
SILENT_S = 10  # until slurmctld calls a slurmd that is silent down
_LOOK_S = 0.1
_CONFIG = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
SlurmctldLogFile={directory}/logs/slurmctld.log
SlurmdLogFile={directory}/logs/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
SlurmdTimeout={silent_s}
KillWait=10
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=4000 {gres}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0
"""


class NoSlurmError(Exception):
    """There can be no Slurm here; the message says why."""


def why_not() -> str:
    """Why no Slurm can be started here; empty where one can be."""
    if os.geteuid() != 0:
        return "a Slurm of our own needs root"
    missing = [name for name in PROGRAMS if _program(name) is None]
    return f"{', '.join(missing)} not found: apt-get install {' '.join(PACKAGES)}" if missing else ""


def install() -> None:
    """Install what is missing with apt-get, as root on Debian. Raises NoSlurmError with its last words."""
    if os.geteuid() == 0 and shutil.which("apt-get") and why_not():
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
            done = subprocess.run(["apt-get", *command], env=quiet, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise NoSlurmError(f"apt-get {command[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    if reason := why_not():
        raise NoSlurmError(reason)


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


class SlurmHere:
    """The daemons of one cluster, with nodes ``node1``, ``node2`` and so on; each has so many made-up GPUs."""

    def __init__(self, nodes: int = 4, gpus: int = 2) -> None:
        """Writes the configuration; raises NoSlurmError."""
        if reason := why_not():
            raise NoSlurmError(reason)
        # munged wants a way to its socket that everybody may go, which the directories of tests are not.
        self.directory = Path(tempfile.mkdtemp(prefix="slurm-here-"))
        self.directory.chmod(0o711)
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.environment = os.environ | {"SLURM_CONF": str(self.directory / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("munge", "key", "state", "spool", "logs", "dev"):
            (self.directory / name).mkdir(mode=0o711)
        (self.directory / "key").chmod(0o700)
        key = self.directory / "key" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._configure(gpus)

    def _configure(self, gpus: int) -> None:
        first = _free_ports(len(self.nodes) + 1)
        values = {
            "directory": self.directory, "host": socket.gethostname(), "nodes": len(self.nodes), "silent_s": SILENT_S,
            "port": first, "first": first + 1, "last": first + len(self.nodes), "gres": f"Gres=gpu:{gpus}",
        }  # fmt: skip
        files = [self.directory / "dev" / f"nvidia{number}" for number in range(gpus)]
        with contextlib.suppress(OSError):  # without device files Slurm counts the GPUs, and names none to the job
            for number, file in enumerate(files):
                os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(195, number))
        given = f"File={self.directory}/dev/nvidia[0-{gpus - 1}]" if files[-1].exists() else f"Count={gpus}"
        self._write("gres.conf", f"NodeName=node[1-{len(self.nodes)}] Name=gpu {given}\n")
        self._write("cgroup.conf", "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        self._write("slurm.conf", _CONFIG.format(**values))

    def _write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text, "utf-8")

    def start(self) -> None:
        """All daemons, until every node is idle. Raises NoSlurmError with the log's last lines."""
        munge, key = self.directory / "munge", self.directory / "key"
        places = {"key-file": key / "key", "seed-file": key / "seed", "socket": munge / "socket"}
        places |= {"pid-file": munge / "pid", "log-file": munge / "log"}
        self._run("munged", "--foreground", "--num-threads=4", *(f"--{name}={path}" for name, path in places.items()))
        self._until(lambda: (munge / "socket").exists(), "munged has no socket")
        self._run("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        self._until(lambda: set(self.states().values()) == {"idle"}, "not every node is idle")

    def start_node(self, node: str) -> None:
        self._run("slurmd", "-D", "-N", node, name=node)

    def _run(self, program: str, *arguments: str, name: str = "") -> None:
        with (self.directory / "logs" / f"{name or program}.out").open("ab") as log:
            self._processes[name or program] = subprocess.Popen(
                [_program(program) or program, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def _until(self, is_so: Callable[[], bool], words: str) -> None:
        deadline_s = time.monotonic() + START_S
        while not is_so():
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline_s:
                logs = "".join(file.read_text("utf-8", "replace")[-600:] for file in self.directory.glob("logs/*.out"))
                raise NoSlurmError(f"{words}; ended: {ended}\n{logs}")
            time.sleep(_LOOK_S)

    def call(self, *command: str, environment: Mapping[str, str] | None = None, check: bool = True) -> str:
        """Run a command of Slurm; its output. Raises subprocess.CalledProcessError."""
        run = [_program(command[0]) or command[0], *command[1:]]
        done = subprocess.run(
            run,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        if check and done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """The state of each node, such as idle, mixed, allocated or down*."""
        lines = self.call("sinfo", "--Node", "--noheader", "--format=%N %T", check=False).splitlines()
        return dict(line.split() for line in lines)

    def kill_node(self, node: str) -> None:
        """What a power cut does to a node: SIGKILL to slurmd, its slurmstepd, and all processes of its steps."""
        slurmd = self._processes.pop(node)
        slurmd.kill()
        slurmd.wait()
        for process in self._of(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _of(self, node: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name().startswith("slurmstepd"):
                    spool = f"{self.directory}/spool/{node}/"
                    if any(str(socket.laddr).startswith(spool) for socket in process.net_connections("unix")):
                        found.append(process)
                    continue
                environ = process.environ()
                ours = environ.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if ours and environ.get("SLURMD_NODENAME") == node:
                    found.append(process)
        return found

    def stop(self) -> None:
        """End the jobs, then the daemons, and what is left of any step; removes the directory."""
        with contextlib.suppress(subprocess.SubprocessError):
            self.call("scancel", "--state=RUNNING", f"--user={os.geteuid()}", check=False)
            self.call("scancel", f"--user={os.geteuid()}", check=False)
            deadline_s = time.monotonic() + STOP_S
            while self.call("squeue", "--noheader", check=False) and time.monotonic() < deadline_s:
                time.sleep(_LOOK_S)
        for node in [name for name in self.nodes if name in self._processes]:
            self.kill_node(node)
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        shutil.rmtree(self.directory, ignore_errors=True)


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(20_000, 60_000, count):
        try:
            with contextlib.ExitStack() as stack:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise NoSlurmError(f"no {count} free ports in a row")


def main() -> int:
    parser = argparse.ArgumentParser(description="A Slurm on this machine, until Ctrl-C.")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus", type=int, default=2, help="made-up ones, for each node")
    parser.add_argument("--install", action="store_true", help="with apt-get, where its programs are missing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.install:
            install()
        slurm = SlurmHere(options.nodes, options.gpus)
    except NoSlurmError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        slurm.start()
        print(f"export SLURM_CONF={slurm.environment['SLURM_CONF']}", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass
    except NoSlurmError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        slurm.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
