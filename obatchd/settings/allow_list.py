"""Addresses that an administrator opens to fetches beside public ones. Imports little: the settings check it."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple


class Opened(NamedTuple):
    """One entry of the allow-list: a pattern of host names, or a network; port 0 is any."""

    pattern: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    port: int


def opened(entry: str) -> Opened:
    """An entry of the allow-list: ``wiki.lab``, ``*.lab:8080``, ``10.1.0.0/16``, ``127.0.0.1:8080``, ``[fd00::1]:80``.

    Raises:
        ValueError: it is none of these.
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
