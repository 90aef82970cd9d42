"""The stand-in's command line: ``python -m obatchd.simulator.ollama serve``, in place of ``ollama serve``."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from obatchd.errors import ConfigError
from obatchd.simulator import config as configuration
from obatchd.simulator import golog
from obatchd.simulator.config import Config

if TYPE_CHECKING:
    from obatchd.simulator.scheduler import Limits

_BACKLOG = 4096
_GIB = 1024**3


def main(arguments: list[str]) -> int:
    """Run one command.

    Returns:
        The exit status.
    """
    if arguments not in (["serve"], ["start"], ["--version"], ["-v"]):
        return _failed("usage: python -m obatchd.simulator.ollama serve")
    try:
        config = configuration.load(os.environ)
        if arguments[0].startswith("-"):
            golog.notice("Warning: could not connect to a running Ollama instance")
            golog.notice(f"Warning: client version is {config.line.version}")
            return 0
        if config.start_failure:
            return _failed(config.start_failure)
        _key_pair()
        listener = _listen()
    except (ConfigError, OSError, ValueError) as error:
        return _failed(str(error))
    import uvloop

    uvloop.run(_serve(config, listener))
    return 0


def _failed(message: str) -> int:
    sys.stderr.write(f"Error: {message}\n")
    return 1


def _key_pair() -> None:
    """``serve`` needs a home directory that it can write, for its key."""
    if not (home := os.environ.get("HOME")):
        raise ValueError("$HOME is not defined")
    key = Path(home, ".ollama", "id_ed25519")
    if not key.exists():
        golog.notice(f"Couldn't find '{key}'. Generating new private key.")
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_text("simulated: no key\n")


def _listen() -> socket.socket:
    """The listening socket of ``OLLAMA_HOST``; clients can connect and wait from here on."""
    host, port = host_and_port(os.environ.get("OLLAMA_HOST", ""))
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"listen tcp {host}:{port}: bind: {reason}") from error
    return listener


def host_and_port(text: str) -> tuple[str, int]:
    """The parts of ``OLLAMA_HOST`` (envconfig/config.go): scheme, host and port may each be absent."""
    scheme, found, rest = text.strip().strip("\"'").partition("://")
    default = 11434 if not found else {"http": 80, "https": 443}.get(scheme, 11434)
    address = (rest if found else scheme).partition("/")[0]
    host, _, port = address.rpartition(":") if ":" in address.rpartition("]")[2] else (address, "", "")
    return host.strip("[]") or "127.0.0.1", int(port) if port.isdigit() and int(port) < 65536 else default


def visible_gpus(value: str | None, config: Config) -> list[str]:
    """UUIDs in ``CUDA_VISIBLE_DEVICES``; without the variable the stand-in sees none."""
    from obatchd.simulator.gpus import simulated_uuid

    if not config.gpu_found:
        return []
    names = [name.strip() for name in (value or "").split(",")]
    return [simulated_uuid(int(name)) if name.isdigit() else name for name in names if name and name != "-1"]


async def _serve(config: Config, listener: socket.socket) -> None:
    # Imported when the port is already open: together they take longer than all the rest of the start.
    from aiohttp import web

    from obatchd.simulator.cards.load import LoadReporter
    from obatchd.simulator.scheduler import Scheduler
    from obatchd.simulator.server import Server
    from obatchd.simulator.store import ModelStore

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    host, port = listener.getsockname()[:2]
    golog.slog("WARN", "simulated", "simulated Ollama: no model runs here, the answers are made up")
    line = config.line
    listening = f"Listening on {host}:{port} (version {line.version})"
    golog.slog("INFO", line.source("routes.go:1864", "routes.go:2008"), listening)
    golog.slog("INFO", "runner.go:67", "discovering available GPUs...")
    await asyncio.sleep(config.discovery_s)
    gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), config)
    _log_gpus(gpus, config)
    limits = _limits(config, gpus)
    directory = os.environ.get("OBATCHD_SIMULATOR_GPU_DIR")
    reporter = LoadReporter(Path(directory), gpus, limits.slots) if directory and gpus else None
    scheduler = Scheduler(config, limits, len(gpus), reporter)
    models = os.environ.get("OLLAMA_MODELS") or os.path.join(os.environ["HOME"], ".ollama", "models")
    server = Server(scheduler, ModelStore(Path(models), config.models))
    runner = web.AppRunner(server.application(), access_log=None, handler_cancellation=True, handle_signals=False)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    await stopping.wait()
    # Ollama drops its connections and does not wait for requests (server/routes.go of v0.24).
    await scheduler.close()
    os._exit(0)


def _limits(config: Config, gpus: list[str]) -> Limits:
    from obatchd.simulator.scheduler import FOREVER_S, Limits

    total = config.gpu_memory_bytes * len(gpus)
    by_memory = 262144 if total >= 47 * _GIB else 32768 if total >= 23 * _GIB else 4096
    golog.slog("INFO", "routes.go:1914", "vram-based default context", total_vram=total, default_num_ctx=by_memory)
    keep = _keep_alive_s(os.environ.get("OLLAMA_KEEP_ALIVE", ""))
    return Limits(
        slots=_number("OLLAMA_NUM_PARALLEL", 1),
        context_length=_number("OLLAMA_CONTEXT_LENGTH", by_memory),
        max_queue=_number("OLLAMA_MAX_QUEUE", 512),
        max_loaded=_number("OLLAMA_MAX_LOADED_MODELS", 3 * max(1, len(gpus))),
        keep_alive_s=FOREVER_S if keep < 0 else keep,
    )


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if text and not text.isdigit():
        golog.slog("WARN", "config.go:259", "invalid environment variable, using default", key=name, value=text)
    return int(text) if text.isdigit() and int(text) else default


def _keep_alive_s(text: str) -> float:
    from obatchd.simulator.scheduler import ServeError
    from obatchd.simulator.wire import go_duration_s

    try:
        return float(text)
    except ValueError:
        pass
    try:
        return go_duration_s(text)
    except ServeError:
        return 300.0


def _log_gpus(gpus: list[str], config: Config) -> None:
    line = config.line
    source = line.source("types.go:60", "types.go:32")
    for index, uuid in enumerate(gpus):
        names = {"id": index, "filter_id": uuid} if line.separate else {"id": uuid, "filter_id": ""}
        total = f"{config.gpu_memory_bytes / _GIB:.1f} GiB"
        golog.slog(
            "INFO",
            source,
            "inference compute",
            **names,
            library="CUDA",
            compute="9.0",
            name=f"CUDA{index}",
            description="Simulated GPU 80GB",
            libdirs="ollama,cuda_v13",
            driver="13.0",
            pci_id=f"0000:{index + 1:02x}:00.0",
            type="discrete",
            total=total,
            available=total,
        )
    if not gpus:
        golog.slog(
            "INFO", source, "inference compute", id="cpu", library="cpu", name="cpu", description="simulated cpu"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
