"""The settings of ``[context]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from obatchd.settings.allow_list import opened
from obatchd.settings.base import Live, PositiveSeconds, Section


class ContextSettings(Section):
    """Sources that requests name (urls, files), fetched and put in front of their prompts."""

    enabled: Live[bool] = Field(False, description="Fetch them. Off, a request that names sources fails.")
    from_links: Live[bool] = Field(False, description="Markdown links in prompts name sources, too.")
    on_error: Live[Literal["fail", "note"]] = Field(
        "fail", description='What cannot be had fails its request, or ("note") is noted in the prompt and the result.'
    )
    keep_full_prompt: Live[bool] = Field(
        False, description="Keep the prompt as it was sent in the result (full_prompt)."
    )
    allow: Live[list[str]] = Field(
        [],
        description="What may be fetched beside public addresses: hosts, with or without a port, and networks, such as "
        '"wiki.lab", "*.lab:8080", "10.1.0.0/16".',
    )
    max_sources: Live[int] = Field(10, ge=1, le=1000, description="Most sources of one request.")
    max_bytes: Live[int] = Field(8 * 1024**2, ge=1024, le=1024**3, description="Most bytes of one source, unpacked.")
    max_characters: Live[int] = Field(
        20_000, ge=1, description="Most characters of one source in a prompt; the rest is cut."
    )
    max_redirects: Live[int] = Field(
        5, ge=0, le=50, description="Most redirects of one URL; each is judged like the first."
    )
    timeout_s: Live[PositiveSeconds] = Field(30, description="Longest time for one URL, redirects included.")
    host_pause_s: Live[float] = Field(
        0.5, ge=0, description="Pause between two requests to one host, which come one by one."
    )
    parse_timeout_s: Live[PositiveSeconds] = Field(20, description="Longest time to find the text in one source.")
    parse_memory_bytes: Live[int] = Field(1024**3, ge=64 * 1024**2, description="Most memory for that.")
    cache_s: Live[float] = Field(
        3600, ge=0, description="How long a fetched text is used without asking; later it is asked whether it changed."
    )
    cache_bytes: Live[int] = Field(
        1024**3, ge=0, description="Most bytes of fetched texts kept, for each owner apart; 0: none."
    )
    user_agent: Live[str] = Field("obatchd", min_length=1, description="How the daemon names itself to servers.")

    @field_validator("allow")
    @classmethod
    def _hosts_or_networks(cls, value: list[str]) -> list[str]:
        for entry in value:
            opened(entry)
        return value
