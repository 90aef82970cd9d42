"""``[context]``: sources in front of prompts, and the addresses that an administrator opens to fetches."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator

from obatchd.settings.base import Count, Live, Natural, NotNegative, Positive, Section, setting


class Opened(NamedTuple):
    """One entry of the allow-list: a pattern of host names, or a network; port 0 is any."""

    pattern: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    port: int


def opened(entry: str) -> Opened:
    """An entry of the allow-list: ``wiki.lab``, ``*.lab:8080``, ``10.1.0.0/16``, ``127.0.0.1:8080``, ``[fd00::1]:80``.

    Raises ValueError for anything else.
    """
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\]:(\d{1,5})|([^\s:/\[\]]+):(\d{1,5})", entry)
    host, port = (match[1] or match[3], int(match[2] or match[4])) if match else (entry, 0)
    if port > 65535:
        raise ValueError(f'"{entry}" has a port that does not exist')
    try:
        return Opened("", ipaddress.ip_network(host, strict=False), port)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9_*?.-]+", host) or not host.strip("*?."):
            raise ValueError(f'"{entry}" is neither a host, with or without a port, nor a network') from None
    return Opened(host.lower().rstrip("."), None, port)


def _host_or_network(entry: str) -> str:
    opened(entry)
    return entry


class ContextSettings(Section):
    """Sources that requests name (urls, files), fetched and put in front of their prompts."""

    enabled: Live[bool] = setting(
        False, "Fetch the web pages and files that requests name as sources. When this is off, such a request fails."
    )
    from_links: Live[bool] = setting(False, "Take Markdown links in prompts for sources, too.")
    on_error: Live[Literal["fail", "note"]] = setting(
        "fail",
        'A source that cannot be had fails its request ("fail"), or prompt and result say that it is missing ("note").',
    )
    keep_full_prompt: Live[bool] = setting(
        False, "Keep in each result the prompt as it was sent, with its sources (full_prompt)."
    )
    allow: Live[list[Annotated[str, AfterValidator(_host_or_network)]]] = setting(
        [],
        "Hosts and networks that obatchd may fetch from beside public addresses: hosts, with or "
        'without a port, and networks, such as "wiki.lab", "*.lab:8080", "10.1.0.0/16".',
    )
    max_sources: Live[int] = setting(10, "How many sources one request may name.", ge=1, le=1000)
    max_bytes: Live[int] = setting(8 * 1024**2, "How large one source may be, unpacked.", ge=1024, le=1024**3)
    max_characters: Live[Count] = setting(
        20_000, "How many characters of one source go into a prompt; the rest is cut."
    )
    max_redirects: Live[int] = setting(
        5, "How many redirects of one URL obatchd follows; it judges each address like the first.", ge=0, le=50
    )
    timeout_s: Live[Positive] = setting(30, "How long one URL may take, redirects included.")
    host_pause_s: Live[NotNegative] = setting(
        0.5, "The pause between two requests to one host; obatchd sends a host one request at a time."
    )
    parse_timeout_s: Live[Positive] = setting(20, "How long obatchd may take to find the text in one source.")
    parse_memory_bytes: Live[int] = setting(
        1024**3, "How much memory obatchd may take to find the text in one source.", ge=64 * 1024**2
    )
    cache_s: Live[NotNegative] = setting(
        3600,
        "How long obatchd uses a fetched text without asking its host again; later it asks "
        "whether the text has changed.",
    )
    cache_bytes: Live[Natural] = setting(1024**3, "How much of fetched texts obatchd keeps for each owner; 0: nothing.")
    user_agent: Live[str] = setting("obatchd", "The name under which obatchd asks web servers.", min_length=1)
