"""``[gpus]``, ``[servers]`` and ``[models]``: which GPUs are used, and the Ollama servers on them with their models."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from obatchd.settings.base import Count, Live, Natural, NotNegative, Positive, Section, setting


def _hours(value: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", value):
        raise ValueError('must be hours such as "22:00-06:00"')
    return value


def _known_use(value: str | list[str | int]) -> str | list[str | int]:
    if isinstance(value, str) and not re.fullmatch(r"all|none|simulated:[1-9]\d{0,2}", value):
        raise ValueError('must be "all", "none", "simulated:N" or a list of UUIDs or indices')
    return value


class GpuSettings(Section):
    """Which GPUs get a server. ``gpus = "all"`` at the top level is short for ``[gpus] use = "all"``."""

    use: Annotated[str | list[str | int], AfterValidator(_known_use)] = setting(
        "all",
        '"all" (that CUDA_VISIBLE_DEVICES, NVIDIA_VISIBLE_DEVICES and SLURM_JOB_GPUS leave to obatchd), "none" (client '
        'only: remote servers), "simulated:N", or a list of GPU UUIDs or indices.',
    )
    exclude: list[str | int] = setting([], "UUIDs or indices of GPUs to leave alone.")
    poll_s: Positive = setting(2.0, "Seconds between two readings of utilisation, memory, power.")
    slow_poll_s: Positive = setting(
        30, "Seconds between two readings of what changes slowly: ECC counters, remapped rows, PCIe."
    )
    silent_warn_s: Positive = setting(10, "The driver is silent for this long: the health of the GPUs is unknown.")
    silent_s: Positive = setting(
        60,
        "Silent for this long: the process that asks it is given up and replaced. A driver in trouble may "
        "take 45 s for one call.",
    )
    shared_bytes: Natural = setting(
        512 * 1024**2, "Other people's processes may hold so much on a GPU; beside more no model is loaded."
    )
    share_unknown: bool = setting(
        False,
        "Load models also beside other people's processes whose memory the driver does not tell, as under WSL, on "
        "vGPUs and MIG slices. For one GPU: obatchctl gpus share.",
    )
    allow: list[Annotated[str, AfterValidator(_hours)]] = setting(
        [],
        'Hours of the day, local time, in which the GPUs are used, e.g. ["22:00-06:00"]; empty: always. '
        "Outside of them models are unloaded and requests wait.",
    )

    @field_validator("allow", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


# Below the kernel's range for outgoing connections (32768 and up, ip(7)).
SERVICE_BASE_PORT = 11500
SERVICE_PORTS = 64


class ServerGroup(Section):
    """One server over several GPUs, for a model that does not fit on one."""

    gpus: list[str | int] = Field(description="UUIDs or indices; they leave the one-server-per-GPU pool.", min_length=2)


class ServerSettings(Section):
    """How the Ollama servers are started and watched."""

    ollama: str = setting("ollama", "The ollama binary: a name on PATH or an absolute path.")
    listen: str = setting(
        "127.0.0.1",
        "Address the servers bind to. A LAN address lets another host's daemon use them; Ollama has no "
        "authentication, so anybody who reaches the port can use, change and delete models.",
    )
    base_port: int = setting(
        0,
        "First port; server i gets base_port + i. 0 picks free ports and keeps them; as a system service 0 "
        f"means {SERVICE_BASE_PORT}, because the {SERVICE_PORTS} ports from there are shut to other users of the host.",
        ge=0,
        le=65000,
    )
    slots: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = setting(
        "auto", 'Requests in flight per server: a number, or "auto" (the most of 8/4/2/1 wholly in VRAM).'
    )
    cpu_servers: int = setting(1, "CPU servers to start where there is no GPU and no remote server.", ge=0, le=64)
    remote_slots: int = setting(4, "Requests in flight per remote server.", ge=1, le=256)
    remote_token: str = setting("", "Bearer token sent to remote servers; empty sends none.", repr=False)
    group: list[ServerGroup] = setting([], "[[servers.group]]: one server over several GPUs.")
    models_dir: str = setting("", "Model store of the servers (OLLAMA_MODELS); empty: Ollama's own default.")
    environment: dict[str, str] = setting({}, "More environment variables for the servers, e.g. a proxy.")
    start_timeout_s: Positive = setting(90, "Longest wait for a server to become ready.")
    load_timeout_s: Positive = setting(900, "Longest wait for a model to be loaded.")
    stagger_s: NotNegative = setting(0.5, "Pause between two server starts.")
    stop_grace_s: Positive = setting(10, "Wait after SIGTERM before SIGKILL.")
    drain_s: NotNegative = setting(60, "Longest wait for in-flight requests when one server is drained.")
    backoff_max_s: Positive = setting(60, "Longest pause between restarts: 1, 2, 4 … seconds.")
    backoff_reset_s: Positive = setting(120, "READY for this long resets the pause.")
    starts_limit: Count = setting(6, "Starts without a completed request before FAILED.")
    starts_window_s: Positive = setting(600, "Window of starts_limit.")
    slow_retry_s: Positive = setting(
        600,
        "Pause between tries of a FAILED server; one that others start is looked for at least every backoff_max_s.",
    )
    idle_unload_s: NotNegative = setting(0, "Unload an idle model after this long; 0 keeps it.")
    health_s: Positive = setting(5, "Seconds between two health checks; three misses restart.")

    @field_validator("environment")
    @classmethod
    def _keeps_prompts_to_itself(cls, value: dict[str, str]) -> dict[str, str]:
        # Ollama's envconfig/config.go: from level 2 (trace) on prompts are logged, and every body to a file.
        if value.get("OLLAMA_DEBUG", "") not in ("", "0", "1", "false", "true") or "OLLAMA_DEBUG_LOG_REQUESTS" in value:
            raise ValueError("OLLAMA_DEBUG above 1 and OLLAMA_DEBUG_LOG_REQUESTS write prompts into logs; remove them")
        return value


class ModelSettings(Section):
    """Which models may be used and pulled."""

    pull: Live[Literal["admin", "allowed", "never"]] = setting(
        "allowed",
        'Who may cause a pull: "admin" (only obatchctl models pull), "allowed" (jobs too, if the name '
        'matches allow), "never".',
    )
    allow: Live[list[str]] = setting(["*"], "Patterns of model names that jobs may use (shell style).")
    pull_margin_bytes: Live[Natural] = setting(2 * 1024**3, "Free disk that must remain after a pull.")
