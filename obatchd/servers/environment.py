"""The environment of a server process, built from an allow-list.

Ollama and its runners inherit whatever they are given: a stray ``OLLAMA_*``, ``CUDA_VISIBLE_DEVICES``, ``LLAMA_ARG_*``
or ``http_proxy`` of the daemon's own environment would silently change where and how they compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from obatchd.errors import ConfigError
from obatchd.gpus.model import Gpu
from obatchd.servers.program import Program
from obatchd.settings.base import expanded
from obatchd.settings.tables.servers import ServerSettings

INSTANCE_MARK = "OBATCH_INSTANCE"
SERVER_MARK = "OBATCH_SERVER"
_PASS = frozenset(
    {"PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "USER", "LOGNAME", "LD_LIBRARY_PATH"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"}
)
_MAX_QUEUE = 512  # requests waiting while a model loads; far above the number ever in flight


class Launch(msgspec.Struct, frozen=True):
    """The parameters in which server processes differ."""

    server: str  # its id
    instance: str  # uuid of the spool
    host: str
    port: int
    slots: int
    context_length: int  # tokens, for requests that name none
    home: Path
    models_dir: Path
    gpus: Sequence[Gpu] = ()
    own: Mapping[str, str] = {}  # variables of the program itself


def build(base: Mapping[str, str], settings: ServerSettings, launch: Launch) -> dict[str, str]:
    """The whole environment of one process; raises ConfigError as :func:`check`.

    ``base`` is the daemon's own; only allow-listed names are taken from it.
    """
    check(settings)
    environment = {name: value for name, value in base.items() if name in _PASS or name.startswith("LC_")}
    environment |= {
        "OLLAMA_VULKAN": "0",  # since 0.30 Vulkan ignores CUDA_VISIBLE_DEVICES and brings back the other GPUs
        "GGML_VK_VISIBLE_DEVICES": "-1",
        "ROCR_VISIBLE_DEVICES": "-1",  # no AMD GPU, by an id that does not exist: Ollama's gpu.mdx, 0.24 and 0.33
        "HIP_VISIBLE_DEVICES": "-1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_LOAD_TIMEOUT": f"{int(settings.load_timeout_s)}s",
        "LLAMA_ARG_CACHE_RAM": "0",  # since 0.30 each runner else keeps up to 8 GiB of old prompts in host memory
    }
    if launch.gpus:
        environment["OLLAMA_FLASH_ATTENTION"] = "1"
    else:  # no library of this name: discover/runner.go passes over those of every GPU (its troubleshooting.mdx)
        environment["OLLAMA_LLM_LIBRARY"] = "cpu"
    environment |= {**launch.own, **settings.environment}
    bypass = [environment.get("NO_PROXY") or base.get("NO_PROXY") or base.get("no_proxy") or "", "127.0.0.1,localhost"]
    environment["NO_PROXY"] = ",".join(part for part in [*bypass, launch.host] if part)
    return environment | _pinned(launch)


def check(settings: ServerSettings) -> None:
    """Raise ConfigError where ``servers.environment`` names a variable that obatchd itself has to set."""
    anyone = Launch("", "", "", 0, 1, 1, Path(), Path())
    if clash := sorted(_pinned(anyone).keys() & settings.environment.keys()):
        raise ConfigError(f"servers.environment: {', '.join(clash)} is set by obatchd for every server; remove it.")


def _pinned(launch: Launch) -> dict[str, str]:
    return {
        INSTANCE_MARK: launch.instance,
        SERVER_MARK: launch.server,
        "HOME": str(launch.home),
        "OLLAMA_HOST": f"[{launch.host}]:{launch.port}" if ":" in launch.host else f"{launch.host}:{launch.port}",
        "OLLAMA_MODELS": str(launch.models_dir),
        "OLLAMA_NOPRUNE": "1",  # the store is shared: one server's start must not delete another's download
        "OLLAMA_NUM_PARALLEL": str(launch.slots),
        "OLLAMA_CONTEXT_LENGTH": str(launch.context_length),  # the default grows with VRAM and then spills to the CPU
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_MAX_QUEUE": str(_MAX_QUEUE),
        "OLLAMA_KEEP_ALIVE": "-1",
        # Full UUIDs: CUDA's own numbering need not follow NVML's. "-1" hides every GPU from a CPU server.
        "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in launch.gpus) or "-1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def models_dir(settings: ServerSettings, program: Program, work: Path) -> Path:
    """The model store: the configured one, else the one that the program itself would use here, else below ``work``.

    The last is for users without a home directory, as in a container. Raises ConfigError where the settings name one.
    """
    if settings.models_dir:
        return expanded(settings.models_dir)
    try:
        return expanded(program.models_dir())
    except ConfigError:
        return work / "models"
