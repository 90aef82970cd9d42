"""The addresses in ``[ollama_instances]``: what may be one, and what may have been meant by what is none."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import Any
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 11434, "https": 443}  # of Ollama itself, and of a proxy in front of it
_HOST_PORT = re.compile(r"^(https?://)?(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+)(:(\d{1,5}))?$")
_NAME = re.compile(r"\w(?:[\w-]*\w)?")  # of one part between dots; resolvers pass letters of other alphabets
_OTHER_COLON = re.compile(r"^(?P<host>[^\[]*\w)\W+(?P<port>\d{1,5})$")  # something else stands where the colon belongs


def split(address: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address; raises ValueError where its port is none."""
    url = urlsplit(address if "://" in address else f"http://{address}")
    return url.scheme, url.hostname or "", url.port or DEFAULT_PORTS[url.scheme]


def usable(value: dict[str, int]) -> dict[str, int]:
    """Raises ValueError at what is no address, and at a server that is there twice."""
    seen: dict[tuple[str, int], str] = {}
    for address in value:
        match = _HOST_PORT.match(address)
        if not match or not _is_host(match[2]) or (match[4] and not 0 < int(match[4]) < 65536):
            raise ValueError(f'"{address}" is not host:port (nor http(s)://host:port){_meant(address)}')
        server = split(address)[1:]
        if server in seen:
            raise ValueError(f'"{address}" and "{seen[server]}" name one server; remove one')
        seen[server] = address
    return value


def quoted(value: Any) -> Any:
    """Raises ValueError where dots of an address that is not in quotes have made tables of it."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        parts = [name]
        while isinstance(inner, dict) and inner:
            part, inner = next(iter(inner.items()))
            parts.append(part)
        if len(parts) > 1:
            raise ValueError(f'put the address in quotes: "{".".join(parts)}"')
    return value


def _is_host(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.strip("[]"))
        return True
    labels = host.removesuffix(".").split(".")
    # Digits and dots alone are no name, and resolvers take such a text for another address than its reader does.
    return all(map(_NAME.fullmatch, labels)) and not labels[-1].isdecimal()


def _meant(address: str) -> str:
    match = _OTHER_COLON.match(address)
    if match and _is_host(match["host"].rpartition("//")[2]) and 0 < int(match["port"]) < 65536:
        return f'; did you mean "{match["host"]}:{match["port"]}"?'
    return ""
