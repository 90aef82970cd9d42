"""A Slurm of our own with a head beside it, and jobs that bring it hosts, as ``obatchctl cluster slurm`` prints."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import psutil
from cluster_support import Head
from daemon_support import BIN, Document, wait_for
from slurm_here import SlurmHere

HERE_S = 60.0
# Its nodes are one machine, and so each has the stand-ins and loopback address of its own that a machine would have.
_ON_A_NODE = """\
#!/bin/bash
export OBATCHD_GPUS=${{OBATCHD_GPUS:-simulated:1}} OBATCHD_GPUS_POLL_S=0.2 OBATCHD_LOG_LEVEL=debug OBATCHD_DRAIN_S=5
export OBATCHD_SERVERS_LISTEN=127.0.0.$((10 + ${{SLURMD_NODENAME#node}})) OBATCHD_SIMULATOR='{simulator}'
exec {obatchd} "$@"
"""


class Cluster:
    """Nodes, a head, and the file for sbatch of the job last made. ``root`` is the test's directory."""

    def __init__(self, root: Path, slurm: SlurmHere, head: Head, simulator: Document) -> None:
        self.root = root
        self.slurm = slurm
        self.head = head
        self.program = root / "obatchd-on-a-node"
        self.program.write_text(_ON_A_NODE.format(simulator=json.dumps(simulator), obatchd=BIN / "obatchd"), "utf-8")
        self.program.chmod(0o755)
        self.hosts_directory = root / "hosts"

    def file(self, name: str, *options: str) -> Path:
        """A file for sbatch, by the command."""
        made = self.root / name
        told = self.head.control(
            "cluster", "slurm", "--gres=gpu:1", "--name", name, "--obatchd", self.program,
            "--directory", self.hosts_directory, "-o", made, *options,
        )  # fmt: skip
        assert told.returncode == 0, told.stdout + told.stderr
        return made

    def submit(self, file: Path) -> str:
        """Its id."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OBATCH")}
        log = self.root / f"{file.name}-%j.log"
        return self.slurm.call("sbatch", "--parsable", f"--output={log}", str(file), environment=environment)

    def here(self) -> set[str]:
        return {name for name, host in self.head.hosts().items() if host["state"] == "here"}

    def until_here(self, *names: str) -> None:
        wait_for(lambda: self.here() == set(names), HERE_S, f"{names} are here: {self.logs()[-3000:]}")

    def logs(self) -> str:
        """What the jobs and all daemons of Slurm have said."""
        files = [*self.root.glob("*.log"), *self.slurm.directory.glob("logs/*")]
        return "\n".join(file.read_text("utf-8", "replace") for file in files)

    def places_with(self, secrets: Iterable[str], *, but: Iterable[Path]) -> list[str]:
        """Where any of the secrets can be read: arguments and environment of every process, and all files but some."""
        found, wanted, spared = [], [secret.encode() for secret in secrets], set(but)
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                for name in ("cmdline", "environ"):
                    content = Path(f"/proc/{process.pid}/{name}").read_bytes()
                    found += [f"{name} of {process.pid}"] if any(secret in content for secret in wanted) else []
        for root in (self.root, self.slurm.directory):
            for file in root.rglob("*"):
                if file.is_file() and file not in spared and any(secret in file.read_bytes() for secret in wanted):
                    found.append(str(file))
        return found
