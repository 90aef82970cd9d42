"""The one declaration of every setting.

Defaults, validation, the commented ``etc/obatchd.toml``, ``docs/settings.md`` and ``obatchctl config`` all come
from the models in this module; reading, merging and explaining errors is :mod:`obatchd.settings_io`.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from obatchd.jobs.template import template_problem
from obatchd.settings_base import PositiveSeconds, Section
from obatchd.settings_burnin import BurninSettings
from obatchd.settings_context import ContextSettings
from obatchd.settings_gpu_health import GpuHealthSettings

# Below the kernel's range for outgoing connections (32768 and up, ip(7)).
SERVICE_BASE_PORT = 11500
SERVICE_PORTS = 64
Priority = Literal["low", "normal", "high"]
_HOST_PORT = re.compile(r"^(https?://)?(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+)(:(\d{1,5}))?$")


class GpuSettings(Section):
    """Which GPUs get a server. ``gpus = "all"`` at the top level is short for ``[gpus] use = "all"``."""

    use: str | list[str | int] = Field(
        "all",
        description='"all", "none" (client only: remote servers), "simulated:N", or a list of GPU UUIDs or indices.',
    )
    exclude: list[str | int] = Field([], description="UUIDs or indices of GPUs to leave alone.")
    poll_s: PositiveSeconds = Field(2.0, description="Seconds between two readings of utilisation, memory, power.")
    slow_poll_s: PositiveSeconds = Field(
        30, description="Seconds between two readings of what changes slowly: ECC counters, remapped rows, PCIe."
    )
    silent_warn_s: PositiveSeconds = Field(
        10, description="The driver is silent for this long: the health of the GPUs is unknown."
    )
    silent_s: PositiveSeconds = Field(
        60,
        description="Silent for this long: the process that asks it is given up and replaced. A driver in trouble may "
        "take 45 s for one call.",
    )

    shared_bytes: int = Field(
        512 * 1024**2,
        ge=0,
        description="Other people's processes may hold so much on a GPU; beside more no model is loaded.",
    )
    allow: list[str] = Field(
        [],
        description='Hours of the day, local time, in which the GPUs are used, e.g. ["22:00-06:00"]; empty: always. '
        "Outside of them models are unloaded and requests wait.",
    )

    @field_validator("allow", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("allow")
    @classmethod
    def _hours(cls, value: list[str]) -> list[str]:
        for hours in value:
            if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", hours):
                raise ValueError('must be hours such as "22:00-06:00"')
        return value

    @field_validator("use")
    @classmethod
    def _known_use(cls, value: str | list[str | int]) -> str | list[str | int]:
        if isinstance(value, str) and not re.fullmatch(r"all|none|simulated:[1-9]\d{0,2}", value):
            raise ValueError('must be "all", "none", "simulated:N" or a list of UUIDs or indices')
        return value


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


class ModelSettings(Section):
    """Which models may be used and pulled."""

    pull: Literal["admin", "allowed", "never"] = Field(
        "allowed",
        description='Who may cause a pull: "admin" (only obatchctl models pull), "allowed" (jobs too, if the name '
        'matches allow), "never".',
    )
    allow: list[str] = Field(["*"], description="Patterns of model names that jobs may use (shell style).")
    pull_margin_bytes: int = Field(2 * 1024**3, ge=0, description="Free disk that must remain after a pull.")


class InboxSettings(Section):
    """How drops are taken."""

    settle_s: PositiveSeconds = Field(
        2, description="A file that was not renamed in is taken when unchanged this long."
    )
    folder_settle_s: PositiveSeconds = Field(5, description="The same for a folder, over all it contains.")
    rescan_s: PositiveSeconds = Field(2, description="Seconds between two looks at the whole inbox.")
    empty_s: PositiveSeconds = Field(60, description="An empty file is refused after this long.")
    claim_batch: int = Field(1000, ge=1, description="Most drops claimed in one go.")
    max_line_bytes: int = Field(16 * 1024**2, ge=1024, description="Longest request.")
    max_unpacked_bytes: int = Field(64 * 1024**3, ge=1024, description="Most bytes a drop may unpack to.")
    max_requests: int = Field(10_000_000, ge=1, description="Most requests in one drop.")
    on_invalid: Literal["fail_line", "fail_file"] = Field(
        "fail_line", description='A bad line fails alone ("fail_line") or refuses the whole drop before it runs.'
    )
    dedupe: Literal["allow", "reject"] = Field(
        "allow", description='A drop with the content of an earlier one: run and report it, or "reject".'
    )


class OutboxSettings(Section):
    """How results are written."""

    response_files: Literal["auto", "always", "never"] = Field(
        "auto", description='One file per response. "auto": for jobs of at most response_files_limit requests.'
    )
    response_text: Literal["txt", "md"] = Field(
        "txt", description="Ending of the file with a response's text. The text is the model's Markdown either way."
    )
    response_files_limit: int = Field(100_000, ge=0, description='Most requests of a job for "auto".')


class DispatchSettings(Section):
    """How requests go to servers."""

    max_attempts: int = Field(5, ge=1, description="Tries of one request before it fails.")
    poison_crashes: int = Field(
        2, ge=1, description="Crashes of a server that a request had to itself before it fails as poison."
    )
    request_timeout_s: PositiveSeconds = Field(3600, description="Longest time of one attempt.")
    request_total_s: PositiveSeconds = Field(
        14400, description="Longest time of one request over all its attempts; waiting between them does not count."
    )
    stall_s: PositiveSeconds = Field(
        300,
        description="No token from any slot of a server for this long: what it works on is given up. Four times as "
        "long while its GPU is busy, because a long prompt may take that.",
    )
    connect_timeout_s: PositiveSeconds = Field(5, description="Longest wait for a connection to a server.")
    commit_interval_ms: int = Field(100, ge=1, le=100, description="Longest wait before results are committed.")
    switch_after_s: PositiveSeconds = Field(
        60, description="A waiting profile with less share takes a server after this."
    )
    strikes: int = Field(3, ge=1, description="Server faults in strike_window_s before a server is restarted.")
    strike_window_s: PositiveSeconds = Field(300, description="Window of strikes.")


class WatchdogSettings(Section):
    """When a server that answers its health checks but does not do its work is taken in hand. See also stall_s."""

    idle_gpu_s: PositiveSeconds = Field(
        60, description="Requests in flight, no token and an idle GPU for this long: one token is asked for."
    )
    idle_gpu_percent: int = Field(2, ge=0, le=100, description="Utilisation up to which a GPU counts as idle.")
    probe_s: PositiveSeconds = Field(30, description="Longest wait for that one token; then the server is restarted.")
    leak_s: PositiveSeconds = Field(
        60, description="Answers that waited for a slot although there were enough, for this long: a restart."
    )
    slow_factor: float = Field(
        0.3, ge=0, lt=1, description="Tokens per second below this share of the server's own best are slow; 0: never."
    )
    slow_s: PositiveSeconds = Field(60, description="Slow for this long: load the model again, then restart.")
    vram_s: PositiveSeconds = Field(
        60,
        description="Seconds between two looks at whether a model is still wholly in VRAM. Old versions of Ollama "
        "may crash when they are asked too often.",
    )
    repeats: int = Field(
        3,
        ge=1,
        description="Restarts for one reason in window_s after which a server gets no more work, if others "
        "do the same work well.",
    )
    window_s: PositiveSeconds = Field(3600, description="Window of repeats.")


class DiskSettings(Section):
    """When dispatch pauses for lack of space."""

    min_free_bytes: int = Field(
        256 * 1024**2, ge=0, description="Below this, dispatch pauses; submissions stop before."
    )
    min_free_inodes: int = Field(10_000, ge=0, description="Below this, dispatch pauses.")
    keep_done_s: float = Field(7 * 86400, ge=0, description="How long a finished job's input and store are kept.")
    keep_done_bytes: int = Field(
        10 * 1024**3, ge=0, description="Most bytes of them; the oldest finished jobs are released first."
    )
    retention_days: float = Field(
        0,
        ge=0,
        description="Days after its end when everything of a job is erased, results, prompts and its row in the "
        "index; 0: never. obatchctl rm does it at once.",
    )
    prune_outbox_s: float = Field(
        0, ge=0, description="Delete results in the outbox and drops in failed/ after this long; 0 never does."
    )


class AlarmSettings(Section):
    """Who is told when something needs somebody. etc/alarm-mail is a ready command that sends mail."""

    command: list[str] = Field(
        [],
        description="Program and arguments, run without a shell for each alarm, which it gets as JSON on its standard "
        "input; empty: none.",
    )
    timeout_s: PositiveSeconds = Field(30, description="Longest time of one run; then it is killed.")
    on: list[Literal["quarantine", "server_failed", "burn_in_finished", "disk_low", "job_done"]] = Field(
        ["quarantine", "server_failed", "burn_in_finished", "disk_low"], description="Which alarms are told."
    )


class RecordSettings(Section):
    """How a job's records become prompts. Only a job has these, and none is given where lines are requests already."""

    template: str | None = Field(None, description="The prompt, with fields of the record in braces: {note}.")
    text_column: str | None = Field(None, min_length=1, description="The field or column that is the prompt.")
    id_column: str | None = Field(None, min_length=1, description="The field or column that is the id.")

    @field_validator("template")
    @classmethod
    def _has_a_field(cls, value: str | None) -> str | None:
        if value is not None and (problem := template_problem(value)):
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _one_prompt(self) -> RecordSettings:
        if self.template is not None and self.text_column is not None:
            raise ValueError("template and text_column both say what the prompt is; give one of them")
        return self


class SelectionSettings(Section):
    """Which requests of a drop are run. Only a job has these."""

    sample: int | None = Field(None, ge=1, le=10_000, description="Run only so many requests, chosen at random.")
    skip_done: bool | str | None = Field(
        None, description="Copy the answers that the same requests got in earlier jobs, or in the one with this id."
    )


class AccessSettings(Section):
    """Who may use the daemon. The system service is started with mode = "service"."""

    mode: Literal["personal", "service"] = Field(
        "personal",
        description='"personal": only the daemon\'s own user and root. "service": members of submit_group, each of '
        "whom sees only what is theirs; outbox and failed have a directory per owner.",
    )
    submit_group: str = Field("obatch-submit", description="Group whose members may drop and submit.", min_length=1)
    admin_group: str = Field(
        "obatch-admin", description="Group whose members see everything and may do everything.", min_length=1
    )


class LimitSettings(Section):
    """What one owner may have open. Further drops of that owner wait in the inbox; 0: no limit."""

    open_jobs: int = Field(0, ge=0, description="Jobs that are not done.")
    open_bytes: int = Field(0, ge=0, description="Bytes of their drops.")
    open_requests: int = Field(0, ge=0, description="Requests of theirs without a result when another drop is taken.")


class Settings(Section):
    """The whole configuration."""

    spool: str = Field("/var/spool/obatch", description="Directory of inbox, work, outbox and failed.")
    model: str = Field("", description="Model of requests that name none.")
    system_message: str = Field("", description="System message of requests that bring none.")
    context_length: int = Field(8192, ge=256, le=4_194_304, description="Context in tokens; rounded up to 4k/8k/16k/….")
    max_response_tokens: int = Field(
        4096, ge=1, description="Token limit of an answer (num_predict) unless asked otherwise."
    )
    priority: Priority = Field("normal", description="Priority of jobs that name none.")
    deadline: Annotated[float, Field(ge=0)] | str = Field(
        0,
        description="When what is not answered of a job expires: seconds after acceptance, or a time such as "
        '"2026-12-31T18:00:00+01:00" (without an offset in local time); 0: never. For jobs that name none.',
    )
    options: dict[str, Any] = Field({}, description="Ollama run-time options of every request, e.g. temperature.")
    format: Literal["", "json"] | dict[str, Any] = Field(
        "", description='What answers must be: "" is text, "json" any JSON, a table a JSON Schema. Checked by us, too.'
    )
    in_source: list[str] = Field(
        [], description="Fields of JSON answers whose values must occur in the prompt; others are listed as ungrounded."
    )
    think: Literal["auto", "low", "medium", "high", "max"] | bool = Field(
        "auto",
        description='Whether models that can reason do so, which costs tokens: true, false, a level, or "auto", which '
        "leaves it to the model.",
    )
    drain_s: float = Field(60, ge=0, description="On SIGTERM, longest wait for in-flight requests.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    gpus: GpuSettings = Field(GpuSettings())
    gpu_health: GpuHealthSettings = Field(GpuHealthSettings())
    burnin: BurninSettings = Field(BurninSettings())
    servers: ServerSettings = Field(ServerSettings())
    models: ModelSettings = Field(ModelSettings())
    inbox: InboxSettings = Field(InboxSettings())
    outbox: OutboxSettings = Field(OutboxSettings())
    context: ContextSettings = Field(ContextSettings())
    dispatch: DispatchSettings = Field(DispatchSettings())
    watchdog: WatchdogSettings = Field(WatchdogSettings())
    disk: DiskSettings = Field(DiskSettings())
    alarms: AlarmSettings = Field(AlarmSettings())
    access: AccessSettings = Field(AccessSettings())
    limits: LimitSettings = Field(LimitSettings())
    ollama_instances: dict[str, int] = Field(
        {},
        description='Remote servers, as in the original project: "host:port" = index of the GPU whose readings belong '
        "to it. With any here, gpus defaults to none.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        gpus = data.get("gpus")
        if isinstance(gpus, str | list):
            data["gpus"] = {"use": gpus}
        access, servers = data.get("access"), data.get("servers", {})
        service = isinstance(access, dict) and access.get("mode") == "service"
        if service and isinstance(servers, dict) and not servers.get("base_port"):
            data["servers"] = {**servers, "base_port": SERVICE_BASE_PORT}
        if data.get("ollama_instances") and "use" not in (data.get("gpus") or {}):
            data["gpus"] = {**(data.get("gpus") or {}), "use": "none"}
        return data

    @field_validator("deadline", mode="before")
    @classmethod
    def _time_in_utc(cls, value: Any) -> Any:
        text = value.isoformat() if isinstance(value, date) else value  # a datetime is a date, too
        if not isinstance(text, str):
            return value
        try:
            return float(text)
        except ValueError:
            pass
        try:
            return datetime.fromisoformat(text).astimezone(UTC).isoformat()
        except (ValueError, OverflowError):
            raise ValueError("must be a number of seconds or a time such as 2026-12-31T18:00:00+01:00") from None

    @field_validator("format")
    @classmethod
    def _usable_schema(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        if value:
            from obatchd.prompts.structured import FormatError, answer_format

            try:
                answer_format(value)
            except FormatError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("ollama_instances")
    @classmethod
    def _addresses(cls, value: dict[str, int]) -> dict[str, int]:
        for address in value:
            match = _HOST_PORT.match(address)
            if not match or (match[4] and not 0 < int(match[4]) < 65536):
                raise ValueError(f'"{address}" is not host:port (nor http(s)://host:port)')
        return value

    @property
    def spool_path(self) -> Path:
        return Path(self.spool).expanduser()
