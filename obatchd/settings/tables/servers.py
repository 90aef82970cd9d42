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
    """Which GPUs get a server."""

    use: Annotated[str | list[str | int], AfterValidator(_known_use)] = setting(
        "all",
        '"all" GPUs (that CUDA_VISIBLE_DEVICES, NVIDIA_VISIBLE_DEVICES and SLURM_JOB_GPUS leave to '
        'obatchd), "none" (only the servers of ollama_instances), "simulated:N" (N stand-ins, to try '
        "obatchd), or a list of UUIDs or indices.",
    )
    exclude: list[str | int] = setting([], "UUIDs or indices of GPUs that obatchd leaves alone.")
    poll_s: Positive = setting(2.0, "How often obatchd reads utilisation, memory and power of the GPUs.")
    slow_poll_s: Positive = setting(
        30, "How often obatchd reads what changes slowly: ECC counters, remapped rows, the PCIe link."
    )
    silent_warn_s: Positive = setting(
        10, "When the driver has been silent for so long, obatchd calls the health of the GPUs unknown."
    )
    silent_s: Positive = setting(
        60,
        "When the driver has been silent for so long, obatchd replaces the process that asks it. A "
        "driver in trouble may take 45 s for one call.",
    )
    shared_bytes: Natural = setting(
        512 * 1024**2,
        "How much memory processes of other people may hold on a GPU; where they hold "
        "more, obatchd loads no model there.",
    )
    share_unknown: bool = setting(
        False,
        "Load models also beside processes of other people whose memory the driver does not tell, as "
        "under WSL, on vGPUs and on MIG slices. For one GPU: obatchctl gpus share.",
    )
    allow: list[Annotated[str, AfterValidator(_hours)]] = setting(
        [],
        'Hours of the day, in local time, in which obatchd uses the GPUs, such as ["22:00-06:00"]; '
        "empty: always. At other hours obatchd unloads the models, and requests wait.",
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

    gpus: list[str | int] = Field(
        description="UUIDs or indices of its GPUs; none of them has a server of its own.", min_length=2
    )


class ServerSettings(Section):
    """How the Ollama servers are started and watched."""

    ollama: str = setting("ollama", "The program ollama: a name on PATH or an absolute path.")
    listen: str = setting(
        "127.0.0.1",
        "The address on which the servers listen. With an address of the LAN, daemons of other hosts "
        "can use them; Ollama has no authentication, so anybody who reaches a port can use, change "
        "and delete models.",
    )
    base_port: int = setting(
        0,
        "The port of the first server; each further one has the next port. 0: obatchd picks free ports and keeps them; "
        f"as a system service 0 means {SERVICE_BASE_PORT}, because the {SERVICE_PORTS} ports from there are shut to "
        "other users of the host.",
        ge=0,
        le=65000,
    )
    slots: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = setting(
        "auto",
        'How many requests a server works on at a time: a number, or "auto" (the most of 8, '
        "4, 2 and 1 with which all fits into the memory of the GPU, and from there on what tune finds).",
    )
    tune: bool = setting(
        True,
        'With slots = "auto" obatchd tries more and fewer slots, from 1 to 64, on the work of long jobs, and keeps the '
        "number with the most tokens per second; obatchctl servers --tuning shows them.",
    )
    tune_pause_s: Live[float] = setting(
        3600,
        "How long after a change of its slots a server keeps them, and no other server with the same kind of GPU gets "
        "other slots for the same model; each change restarts a server.",
        ge=1,
        le=7 * 86_400,
    )
    cpu_servers: int = setting(
        1,
        "How many servers on the CPU obatchd starts where there is no GPU and no server in ollama_instances.",
        ge=0,
        le=64,
    )
    remote_slots: int = setting(
        4, "How many requests each server of ollama_instances works on at a time.", ge=1, le=256
    )
    remote_token: str = setting(
        "", "The bearer token that obatchd sends to the servers of ollama_instances; empty: none.", repr=False
    )
    group: list[ServerGroup] = setting([], "Each [[servers.group]] is one server over several GPUs.")
    models_dir: str = setting(
        "",
        "The directory of the servers' models (OLLAMA_MODELS); empty: Ollama's own. The system service may write "
        "to another one only after systemctl edit obatchd: [Service], ReadWritePaths=DIRECTORY (docs/service.md).",
    )
    environment: dict[str, str] = setting({}, "Environment variables for the servers, such as that of a proxy.")
    start_timeout_s: Positive = setting(90, "How long a server may take to become ready.")
    load_timeout_s: Positive = setting(900, "How long a model may take to be loaded.")
    stagger_s: NotNegative = setting(0.5, "The pause between the starts of two servers.")
    stop_grace_s: Positive = setting(10, "A server that is stopped is killed when it has not ended after so long.")
    drain_s: NotNegative = setting(60, "How long obatchd waits for running answers when one server is drained.")
    backoff_max_s: Positive = setting(
        60, "A server that ended is started again after a pause of 1, 2, 4 … seconds; this is the longest one."
    )
    backoff_reset_s: Positive = setting(
        120, "When a server has been ready for so long, its next pause is a short one again."
    )
    starts_limit: Count = setting(
        6, "A server counts as failed after so many starts in starts_window_s without an answer."
    )
    starts_window_s: Positive = setting(600, "How long obatchd counts starts.")
    slow_retry_s: Positive = setting(
        600,
        "The pause between two tries of a failed server; obatchd looks for a server of "
        "ollama_instances at least every backoff_max_s.",
    )
    idle_unload_s: NotNegative = setting(0, "A model that nobody has used for so long is unloaded; 0: never.")
    health_s: Positive = setting(
        5, "How often obatchd checks the health of a server; when three checks fail, it restarts the server."
    )

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
        'Who may have a model pulled: "admin" (only with obatchctl models pull), "allowed" (jobs, '
        'too, if the name of the model matches allow), "never" (nobody).',
    )
    allow: Live[list[str]] = setting(
        ["*"], "Patterns for the names of models that jobs may use, written as in a shell."
    )
    pull_margin_bytes: Live[Natural] = setting(2 * 1024**3, "How much of the disk must stay free after a pull.")
