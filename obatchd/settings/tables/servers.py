"""``[servers]``: how Ollama servers are started and watched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from obatchd.settings.base import PositiveSeconds, Section

# Below the kernel's range for outgoing connections (32768 and up, ip(7)).
SERVICE_BASE_PORT = 11500


SERVICE_PORTS = 64


class ServerGroup(Section):
    """One server over several GPUs, for a model that does not fit on one."""

    gpus: list[str | int] = Field(description="UUIDs or indices; they leave the one-server-per-GPU pool.", min_length=2)


class ServerSettings(Section):
    """How the Ollama servers are started and watched."""

    ollama: str = Field("ollama", description="The ollama binary: a name on PATH or an absolute path.")
    listen: str = Field(
        "127.0.0.1",
        description="Address the servers bind to. A LAN address lets another host's daemon use them; Ollama has no "
        "authentication, so anybody who reaches the port can use, change and delete models.",
    )
    base_port: int = Field(
        0,
        ge=0,
        le=65000,
        description="First port; server i gets base_port + i. 0 picks free ports and keeps them; as a system service 0 "
        f"means {SERVICE_BASE_PORT}, because the {SERVICE_PORTS} ports from there are shut to other users of the host.",
    )
    slots: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        "auto", description='Requests in flight per server: a number, or "auto" (the most of 8/4/2/1 wholly in VRAM).'
    )
    cpu_servers: int = Field(
        1, ge=0, le=64, description="CPU servers to start where there is no GPU and no remote server."
    )
    remote_slots: int = Field(4, ge=1, le=256, description="Requests in flight per remote server.")
    remote_token: str = Field("", description="Bearer token sent to remote servers; empty sends none.", repr=False)
    group: list[ServerGroup] = Field([], description="[[servers.group]]: one server over several GPUs.")
    models_dir: str = Field("", description="Model store of the servers (OLLAMA_MODELS); empty: Ollama's own default.")
    environment: dict[str, str] = Field({}, description="More environment variables for the servers, e.g. a proxy.")
    start_timeout_s: PositiveSeconds = Field(90, description="Longest wait for a server to become ready.")
    load_timeout_s: PositiveSeconds = Field(900, description="Longest wait for a model to be loaded.")
    stagger_s: float = Field(0.5, ge=0, description="Pause between two server starts.")
    stop_grace_s: PositiveSeconds = Field(10, description="Wait after SIGTERM before SIGKILL.")
    drain_s: float = Field(60, ge=0, description="Longest wait for in-flight requests when one server is drained.")
    backoff_max_s: PositiveSeconds = Field(60, description="Longest pause between restarts: 1, 2, 4 … seconds.")
    backoff_reset_s: PositiveSeconds = Field(120, description="READY for this long resets the pause.")
    starts_limit: int = Field(6, ge=1, description="Starts without a completed request before FAILED.")
    starts_window_s: PositiveSeconds = Field(600, description="Window of starts_limit.")
    slow_retry_s: PositiveSeconds = Field(600, description="Pause between tries of a FAILED server.")
    idle_unload_s: float = Field(0, ge=0, description="Unload an idle model after this long; 0 keeps it.")
    health_s: PositiveSeconds = Field(5, description="Seconds between two health checks; three misses restart.")

    @field_validator("environment")
    @classmethod
    def _keeps_prompts_to_itself(cls, value: dict[str, str]) -> dict[str, str]:
        # Ollama's envconfig/config.go: from level 2 (trace) on prompts are logged, and every body to a file.
        if value.get("OLLAMA_DEBUG", "") not in ("", "0", "1", "false", "true") or "OLLAMA_DEBUG_LOG_REQUESTS" in value:
            raise ValueError("OLLAMA_DEBUG above 1 and OLLAMA_DEBUG_LOG_REQUESTS write prompts into logs; remove them")
        return value
