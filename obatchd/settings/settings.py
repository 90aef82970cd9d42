"""The one declaration of every setting.

Defaults, validation, the commented ``etc/obatchd.toml``, ``docs/settings.md`` and ``obatchctl config`` all come
from the models in this module, and a field's mark says the effect of a reload (:mod:`obatchd.settings.base`);
reading, merging and explaining errors is :mod:`obatchd.settings.reading`.
"""

from __future__ import annotations

import contextlib
import math
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from obatchd.prompts.structured import FormatError, answer_format
from obatchd.settings import addresses
from obatchd.settings.base import Count, Live, NextJob, NotNegative, Section, expanded, setting
from obatchd.settings.tables.cluster import ClusterSettings
from obatchd.settings.tables.context import ContextSettings
from obatchd.settings.tables.dispatch import DispatchSettings, WatchdogSettings
from obatchd.settings.tables.gpu_health import BurninSettings, GpuHealthSettings
from obatchd.settings.tables.http import HttpSettings
from obatchd.settings.tables.metrics import MetricsSettings
from obatchd.settings.tables.people import AccessSettings, AlarmSettings, NotificationSettings
from obatchd.settings.tables.servers import SERVICE_BASE_PORT, GpuSettings, ModelSettings, ServerSettings
from obatchd.settings.tables.spool import DiskSettings, InboxSettings, LimitSettings, OutboxSettings
from obatchd.times import span_s

Priority = Literal["low", "normal", "high"]


def _no_setting(value: Any) -> Any:
    """Raises ValueError where a setting stands among the addresses: what is below a table in TOML belongs to it."""
    for name in value if isinstance(value, dict) else ():
        if name in Settings.model_fields:
            raise ValueError(f"{name} belongs above the first [table]; below [ollama_instances] it is an address")
        if name in ServerSettings.model_fields:
            raise ValueError(f"{name} belongs below [servers]; below [ollama_instances] it is an address")
    return addresses.quoted(value)


def _passable(value: Any) -> Any:
    """Refuses what no message to a worker can hold: it would stop the requests of all jobs; and what JSON has not."""
    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError):
        raise ValueError("must have no whole number of more than 64 bits, and no half of a character") from None
    for name, inner in value.items() if isinstance(value, dict) else ():
        _as_json(name, inner)
    return value


def _as_json(name: str, value: Any) -> None:
    if isinstance(value, date | time):  # a datetime is a date, too
        raise ValueError(f"{name} must have no date or time, which JSON does not know: put it between quotes")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _as_json(name, inner)


def _usable_format(value: str | dict[str, Any]) -> str | dict[str, Any]:
    if value:
        try:
            answer_format(value)
        except FormatError as error:
            raise ValueError(str(error)) from None
    return value


class Settings(Section):
    """The whole configuration."""

    spool: str = setting(
        "/var/spool/obatch",
        "The directory in which obatchd keeps its inbox, outbox, failed and work. Where nothing else names one, it is "
        "that of the variable OBATCH_SPOOL, which obatchctl obeys, too.",
    )
    model: NextJob[str] = setting("", "The model of requests that name none.")
    system_message: NextJob[str] = setting("", "The system message of requests that bring none.")
    context_length: NextJob[int] = setting(
        8192,
        "The context of each request in tokens, prompt and answer together; obatchd "
        "rounds it up to 4k, 8k, 16k and so on.",
        ge=256,
        le=4_194_304,
    )
    max_response_tokens: NextJob[Annotated[Count, AfterValidator(_passable)]] = setting(
        4096, "The most tokens of an answer (Ollama's num_predict), unless the request says otherwise."
    )
    priority: NextJob[Priority] = setting("normal", "The priority of jobs that name none.")
    deadline: NextJob[Annotated[float, Field(ge=0, allow_inf_nan=False)] | str] = setting(
        0,
        'When the requests of a job that have no answer expire: seconds after acceptance, a text such as "2h", or a '
        'time such as "2026-12-31T18:00:00+01:00" (without an offset in local time); 0: never. For jobs that name no '
        "deadline.",
    )
    options: NextJob[Annotated[dict[str, Any], AfterValidator(_passable)]] = setting(
        {}, "Ollama's run-time options for every request, such as temperature."
    )
    format: NextJob[
        Annotated[Literal["", "json"] | dict[str, Any], AfterValidator(_passable), AfterValidator(_usable_format)]
    ] = setting(
        "",
        'What every answer must be: "" is text, "json" is any JSON, a table is a JSON '
        "Schema. obatchd checks each answer, too.",
    )
    in_source: NextJob[list[str]] = setting(
        [], "Fields of JSON answers whose values must occur in the prompt; obatchd lists other values as ungrounded."
    )
    think: NextJob[Literal["auto", "low", "medium", "high", "max"] | bool] = setting(
        "auto",
        'Whether models that can reason do so, which costs tokens: true, false, a level, or "auto", which '
        "leaves it to the model.",
    )
    drain_s: Live[NotNegative] = setting(
        60, "How long obatchd waits for running answers when it is told to stop (SIGTERM or Ctrl-C)."
    )
    log_level: Live[Literal["debug", "info", "warning", "error"]] = setting(
        "info", "obatchd logs events of this level and above."
    )
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
    notifications: NotificationSettings = Field(NotificationSettings())
    access: AccessSettings = Field(AccessSettings())
    http: HttpSettings = Field(HttpSettings())
    metrics: MetricsSettings = Field(MetricsSettings())
    limits: LimitSettings = Field(LimitSettings())
    cluster: ClusterSettings = Field(ClusterSettings())
    ollama_instances: Annotated[dict[str, int], BeforeValidator(_no_setting), AfterValidator(addresses.usable)] = (
        setting(
            {},
            'Ollama servers that others start: "host:port" = -1. A server on this host may have the index of its '
            "NVIDIA GPU instead, whose readings are then shown with it; for another host every number does the same as "
            '-1. Without a port it is 11434, of "https://host" 443. obatchd follows no redirects. With any server '
            'here, gpus defaults to "none".',
        )
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_that_depend(cls, data: dict[str, Any]) -> dict[str, Any]:
        servers, gpus = data.get("servers", {}), data.get("gpus", {})
        match data.get("access"):
            case {"mode": "service"} if isinstance(servers, dict) and not servers.get("base_port"):
                data = data | {"servers": {**servers, "base_port": SERVICE_BASE_PORT}}
        if data.get("ollama_instances") and isinstance(gpus, dict):
            data = data | {"gpus": {"use": "none", **gpus}}
        return data

    @field_validator("http")
    @classmethod
    def _keys_in_a_service(cls, value: HttpSettings, about: ValidationInfo) -> HttpSettings:
        access = about.data.get("access")
        if value.keyless_owner and access is not None and access.mode == "service":
            raise ValueError("keyless_owner is for the daemon of one user; in a system service everybody has a key")
        return value

    @field_validator("deadline", mode="before")
    @classmethod
    def _time_in_utc(cls, value: Any) -> Any:
        text = value.isoformat() if isinstance(value, date) else value  # a datetime is a date, too
        if not isinstance(text, str):
            return value
        with contextlib.suppress(ValueError):
            return float(text)
        with contextlib.suppress(ValueError):
            return span_s(text)
        try:
            return datetime.fromisoformat(text).astimezone(UTC).isoformat()
        except (ValueError, OverflowError):
            raise ValueError(
                'must be seconds, a text such as "2h", or a time such as 2026-12-31T18:00:00+01:00'
            ) from None

    @property
    def spool_path(self) -> Path:
        """Raises ConfigError where it begins with ``~`` and there is no home directory."""
        return expanded(self.spool)
