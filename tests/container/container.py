"""A booted Debian in a container, on a small disk image of its own that can be filled up. For scripts/test-system."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_DISK_BYTES = 3 * 1024**3
_BOOT_S = 90


def wait_for(look: Callable[[], T], timeout_s: float = 30, what: str = "") -> T:
    """The first true value of ``look``."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := look()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)
    return value


class Container:
    """``base`` stays as it is: what the container writes goes to an image below ``work``. It has no network but lo."""

    def __init__(self, base: Path, work: Path) -> None:
        self.work = work
        self.root = work / "root"
        self._image, self._disk = work / "disk.img", work / "disk"
        for directory in (self.root, self._disk):
            directory.mkdir()
        with open(self._image, "wb") as image:
            image.truncate(_DISK_BYTES)
        _run("mkfs.ext4", "-q", "-m", "0", self._image)
        _run("mount", "-o", "loop", self._image, self._disk)
        for name in ("upper", "work"):
            (self._disk / name).mkdir()
        layers = f"lowerdir={base},upperdir={self._disk / 'upper'},workdir={self._disk / 'work'}"
        _run("mount", "-t", "overlay", "overlay", "-o", layers, self.root)
        self._nspawn: subprocess.Popen[bytes] | None = None

    # Life.

    def boot(self) -> None:
        """Start it and wait until systemd says that it is up."""
        log = open(self.work / "console.log", "ab")  # noqa: SIM115 - the process keeps it
        command = ["systemd-nspawn", "--register=no", "--keep-unit", "--boot", "--quiet", "--private-network"]
        self._nspawn = subprocess.Popen(
            [*command, "--console=pipe", "-D", self.root], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        wait_for(self.leader, _BOOT_S, "the container's first process")

        def state() -> bool:
            done = self.run("systemctl is-system-running", check=False)
            return done.stdout.strip() in ("running", "degraded")

        wait_for(state, _BOOT_S, "the container is booted")

    def reboot(self) -> None:
        """Reboot it as its administrator would."""
        assert self._nspawn is not None
        self.run("systemctl reboot", check=False)
        self._nspawn.wait(_BOOT_S)  # with --keep-unit it leaves the second boot to whoever started it
        self.boot()

    def leader(self) -> int:
        """The container's first process, by its number here; 0 while there is none."""
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def close(self) -> None:
        """End it and take its mounts away."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            self._nspawn.send_signal(signal.SIGTERM)  # an orderly power-off
            try:
                self._nspawn.wait(30)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        for mount in (self.root, self._disk):
            subprocess.run(["umount", "-l", mount], check=False)

    def host_pids(self, words: str) -> list[int]:
        """Processes of the container with ``words`` in their command line, by their numbers here."""
        inside = os.readlink(f"/proc/{self.leader()}/ns/pid")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone by now
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if words in command and os.readlink(process / "ns/pid") == inside:
                    found.append(int(process.name))
        return sorted(found)

    def kill_for_memory(self, pid: int) -> str:
        """Have the kernel kill a process for want of memory; where no control group can be made, kill it alike."""
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
            group = Path(root, "obatch-test")
            try:
                group.mkdir(exist_ok=True)
                (group / limit).write_text("67108864")
                (group / "cgroup.procs").write_text(str(pid))
            except OSError:
                with contextlib.suppress(OSError):
                    group.rmdir()
                continue
            # Four share the memory, so that the process with the greatest adjustment is the kernel's first choice.
            hog = (
                "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.fork(); os.fork(); "
                "[(b := []), *(b.append(b'x' * 2**20) for _ in range(300))]"
            )
            subprocess.run([sys.executable, "-c", hog, group / "cgroup.procs"], check=False)
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), 20, "the kernel kills it")
            wait_for(lambda procs=group / "cgroup.procs": not procs.read_text(), 20, "nothing is left in the group")
            group.rmdir()
            return "killed by the kernel for want of memory"
        os.kill(pid, signal.SIGKILL)
        return "SIGKILL, as of the kernel for want of memory"

    # Commands.

    def run(
        self, command: str, user: str = "root", *, check: bool = True, stdin: str = "", timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command inside, as a user with the groups the user database gives."""
        enter = ["nsenter", "-t", str(self.leader()), "--all", "--"]
        clean = ["env", "-i", "PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin", "LANG=C.UTF-8", "TERM=dumb"]
        who = (
            ["HOME=/root", "sh", "-c"] if user == "root" else ["runuser", "-u", user, "--", "env", f"HOME=/home/{user}"]
        )
        shell = [] if user == "root" else ["sh", "-c"]
        done = subprocess.run(
            [*enter, *clean, *who, *shell, command], input=stdin, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{user}$ {command}\n→ {done.returncode}: {done.stdout[-800:]}{done.stderr[-1500:]}")
        return done

    def out(self, command: str, user: str = "root", **more: Any) -> str:
        """What a command prints."""
        return self.run(command, user, **more).stdout.strip()

    def ctl(self, arguments: str, user: str = "root") -> dict[str, Any]:
        """The JSON answer of obatchctl."""
        done = self.run(f"obatchctl {arguments} --json", user, check=False)
        assert done.stdout, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        assert "error" not in document, document
        return document

    def put(self, path: str, content: str | bytes, owner: str = "root", mode: int = 0o644) -> None:
        """Write a file inside."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)
        if owner != "root":
            self.run(f"chown {owner}: {shlex.quote(path)}")


def _run(*command: str | os.PathLike[str]) -> None:
    subprocess.run(command, check=True)
