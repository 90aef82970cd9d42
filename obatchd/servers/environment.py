"""The environment of a server process, built from an allow-list.

Ollama and its runners inherit whatever they are given: a stray ``OLLAMA_*``, ``CUDA_VISIBLE_DEVICES``, ``LLAMA_ARG_*``
or ``http_proxy`` of the daemon's own environment would silently change where and how they compute.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

import obatchd
from obatchd.errors import ConfigError
from obatchd.gpus.model import Gpu
from obatchd.settings.tables.servers import ServerSettings

INSTANCE_MARK = "OBATCH_INSTANCE"
SERVER_MARK = "OBATCH_SERVER"
_PASS = frozenset(
    {"PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "USER", "LOGNAME", "LD_LIBRARY_PATH"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"}
)
_MAX_QUEUE = 512  # requests waiting while a model loads; far above what is ever in flight


class Child(msgspec.Struct, frozen=True):
    """What makes one server process differ from another."""

    server: str  # its id
    instance: str  # uuid of the spool
    host: str
    port: int
    slots: int
    context_length: int  # tokens, for requests that name none
    home: Path
    models_dir: Path
    gpus: Sequence[Gpu] = ()
    simulator_dir: Path | None = None  # set: the process is the simulator


def build(base: Mapping[str, str], settings: ServerSettings, child: Child) -> dict[str, str]:
    """The whole environment of ``child``.

    Args:
        base: the daemon's own environment; only allow-listed names are taken from it.

    Raises:
        ConfigError: ``servers.environment`` sets a variable that obatchd itself has to set.
    """
    check(settings)
    environment = {name: value for name, value in base.items() if name in _PASS or name.startswith("LC_")}
    environment |= {
        "OLLAMA_VULKAN": "0",  # since 0.30 Vulkan ignores CUDA_VISIBLE_DEVICES and brings back the other GPUs
        "GGML_VK_VISIBLE_DEVICES": "-1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_LOAD_TIMEOUT": f"{int(settings.load_timeout_s)}s",
        "LLAMA_ARG_CACHE_RAM": "0",  # since 0.30 each runner else keeps up to 8 GiB of old prompts in host memory
    }
    if child.gpus:
        environment["OLLAMA_FLASH_ATTENTION"] = "1"
    if child.simulator_dir is not None:
        environment |= {name: value for name, value in base.items() if name.startswith("OBATCHD_SIMULATOR")}
        environment |= {
            "OBATCHD_SIMULATOR_GPU_DIR": str(child.simulator_dir),
            "PYTHONPATH": str(Path(obatchd.__file__).parents[1]),
        }
    environment |= settings.environment
    bypass = [environment.get("NO_PROXY") or base.get("NO_PROXY") or base.get("no_proxy") or "", "127.0.0.1,localhost"]
    environment["NO_PROXY"] = ",".join(part for part in [*bypass, child.host] if part)
    return environment | _pinned(child)


def check(settings: ServerSettings) -> None:
    """Make sure that the settings leave alone what obatchd itself has to set for every server.

    Raises:
        ConfigError: ``servers.environment`` names such a variable.
    """
    anyone = Child("", "", "", 0, 1, 1, Path(), Path())
    if clash := sorted(_pinned(anyone).keys() & settings.environment.keys()):
        raise ConfigError(f"servers.environment: {', '.join(clash)} is set by obatchd for every server; remove it.")


def _pinned(child: Child) -> dict[str, str]:
    return {
        INSTANCE_MARK: child.instance,
        SERVER_MARK: child.server,
        "HOME": str(child.home),
        "OLLAMA_HOST": f"[{child.host}]:{child.port}" if ":" in child.host else f"{child.host}:{child.port}",
        "OLLAMA_MODELS": str(child.models_dir),
        "OLLAMA_NOPRUNE": "1",  # the store is shared: one server's start must not delete another's download
        "OLLAMA_NUM_PARALLEL": str(child.slots),
        "OLLAMA_CONTEXT_LENGTH": str(child.context_length),  # the default grows with VRAM and then spills to the CPU
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_MAX_QUEUE": str(_MAX_QUEUE),
        "OLLAMA_KEEP_ALIVE": "-1",
        # Full UUIDs: CUDA's own numbering need not follow NVML's. "-1" hides every GPU from a CPU server.
        "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in child.gpus) or "-1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def models_dir(settings: ServerSettings, base: Mapping[str, str]) -> Path:
    """The model store: the configured one, else the one Ollama itself would use here."""
    chosen = settings.models_dir or base.get("OLLAMA_MODELS") or "~/.ollama/models"
    return Path(chosen).expanduser().absolute()


def command(ollama: str, *, simulated: bool) -> list[str]:
    """The command line of a server. ``ollama`` is the path of the binary."""
    return [sys.executable, "-m", "obatchd.simulator.ollama", "serve"] if simulated else [ollama, "serve"]
