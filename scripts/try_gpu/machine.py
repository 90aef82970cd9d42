"""The machine that a step runs on: a real GPU with the Ollama that was built for it, or stand-ins."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import stand_in
from harness import Daemon

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "try-gpu"
MODEL = "endless"  # makes as many tokens as it may, and never ends by itself
SIMULATOR: dict[str, Any] = {
    "throughput": {"points": [[1, 100], [8, 700], [24, 1500], [64, 2200]], "noise": 0.02},
    "prompt_tokens_per_s": 20_000.0,
    "answer": {"value": 64},
    "models": [{"name": MODEL, "kv_bytes_per_token": 128 * 1024}],
}


class Machine:
    """Where servers, models and spools are, and whether they are real."""

    def __init__(self, *, only_stand_ins: bool) -> None:
        self.driver = "" if only_stand_ins else _driver()
        self.real = bool(self.driver)
        self.spool = CACHE / "work" / ("spool" if self.real else "spool-of-stand-ins")
        self.ollama = CACHE / "ollama" / "bin" / "ollama"
        self.models = CACHE / "models"
        self.pack = CACHE / "pack"

    @property
    def words(self) -> str:
        if self.real:
            return self.driver
        library = (
            "a C library that answers NVML's calls" if stand_in.CAN_BE_MADE else "no NVML, since no C compiler is here"
        )
        return f"STAND-INS: no GPU was used; {library}, stand-in servers and stand-in loads"

    def facts(self) -> Iterator[str]:
        """What the machine has, for people."""
        yield f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        for name in ("nvidia-smi", "nvcc", "cmake", "ninja", "dcgmi", "gpu-burn", "gpu_burn", "chromium"):
            if found := shutil.which(name):
                yield f"{name}: {found}"
        if self.real:
            yield run(
                ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
            )

    @contextlib.contextmanager
    def daemon(self, name: str, *, goes_on: bool = False, **config: Any) -> Iterator[Daemon]:
        """A daemon with one server, on a spool of its own, which is new unless it ``goes_on`` with an earlier one's.

        ``config`` is laid over the settings, table by table.
        """
        directory = self.spool / name
        if not goes_on:
            shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {
            "model": MODEL, "log_level": "info", "drain_s": 2, "max_response_tokens": 64,
            "gpus": {"use": [0], "poll_s": 0.5, "slow_poll_s": 5}, "servers": {"stagger_s": 0, "slots": 8},
            "outbox": {"response_files": "never"}, "http": {"listen": ""},
        }  # fmt: skip
        if self.real:
            settings["servers"] |= {"ollama": str(self.ollama), "models_dir": str(self.models)}
        elif stand_in.CAN_BE_MADE:
            settings["servers"] |= {"ollama": "simulator"}
        else:
            settings["gpus"]["use"] = "simulated:1"
        for table, values in config.items():
            settings[table] = settings[table] | values if isinstance(settings.get(table), dict) else values
        with self.library(directory), Daemon(directory, settings, {} if self.real else SIMULATOR) as daemon:
            daemon.start()
            yield daemon

    @contextlib.contextmanager
    def library(self, directory: Path) -> Iterator[stand_in.StandInLibrary | None]:
        """The stand-in library, for processes that are started meanwhile; None where NVIDIA's is used."""
        if self.real or not stand_in.CAN_BE_MADE:
            yield None
            return
        with stand_in.StandInLibrary(CACHE / "work" / "library", directory / "spool" / "work" / "simulator") as library:
            before = {name: os.environ.get(name) for name in library.environment}
            os.environ |= library.environment
            try:
                yield library
            finally:
                for name, value in before.items():
                    if value is None:
                        del os.environ[name]
                    else:
                        os.environ[name] = value

    def keep_logs(self, archive: Path, most_bytes: int = 2 * 2**20) -> None:
        """The end of every log, in one file."""
        wanted = [*CACHE.glob("*.log"), *CACHE.glob("ollama/*.log"), *self.spool.glob("*/log")]
        wanted += [*self.spool.glob("*/spool/work/logs/*.log"), *self.spool.glob("*/spool/work/burnin/*.jsonl")]
        with tarfile.open(archive, "w:xz") as file:
            for path in sorted(wanted):
                end = CACHE / "work" / "end-of-log"
                end.write_bytes(path.read_bytes()[-most_bytes:])
                file.add(end, str(path.relative_to(CACHE)))
                end.unlink()


def _driver() -> str:
    """The first GPU and its driver, through NVML itself; empty without them."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        handle, name, version = ctypes.c_void_p(), ctypes.create_string_buffer(96), ctypes.create_string_buffer(80)
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
            return ""
        nvml.nvmlDeviceGetName(handle, name, 96)
        nvml.nvmlSystemGetDriverVersion(version, 80)
    except (OSError, AttributeError):
        return ""
    return f"{name.value.decode()}, driver {version.value.decode()}"


def run(command: list[str], timeout_s: float = 60, **options: Any) -> str:
    """The output of a program; raises with its last words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-600:]}")
    return done.stdout.strip()


def control(daemon: Daemon, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """``obatchctl`` on the daemon's spool."""
    command = [str(Path(sys.executable).with_name("obatchctl")), "--spool", str(daemon.spool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def drop(daemon: Daemon, name: str, requests: list[dict[str, Any]]) -> None:
    """Put a job into the inbox."""
    path = daemon.inbox.parent.parent / f"{name}.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    os.rename(path, daemon.inbox / path.name)


def summary_of(daemon: Daemon, name: str, timeout_s: float) -> dict[str, Any]:
    """The summary of a job, once it is done."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := list(daemon.outbox.glob(f"{name}.*/summary.json"))):
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{name} was not done within {timeout_s:.0f} s")
        time.sleep(0.1)
    document: dict[str, Any] = json.loads(found[0].read_bytes())
    return document
