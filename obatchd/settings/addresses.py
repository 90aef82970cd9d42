"""Addresses: in ``[ollama_instances]`` (what may be one, and what may have been meant by another), and of doors."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import Any, NamedTuple
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 11434, "https": 443}  # of Ollama itself, and of a proxy in front of it
_HOST_PORT = re.compile(r"^(https?://)?(\[[0-9a-fA-F:]+\]|[^\s:/\[\]@]+)(:(\d{1,5}))?$")
_LISTENING = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+|localhost)):([0-9]{1,5})")
_NAME = re.compile(r"\w(?:[\w-]*\w)?")  # of one part between dots; resolvers pass letters of other alphabets
_OTHER_COLON = re.compile(r"^(?P<host>[^\[]*\w)\W+(?P<port>\d{1,5})$")  # something else stands where the colon belongs
_SCHEME = re.compile(r"^([a-z]{1,7}):/+", re.IGNORECASE)


class Address(NamedTuple):
    """Where a door is."""

    host: str  # an IP address, or a name where others reach it by one
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can reach it; raises ValueError where it has a name."""
        return ipaddress.ip_address(self.host).is_loopback


def listening(text: str, wanted: str) -> Address:
    """An address to listen on; raises ValueError, which says that it must be ``wanted``."""
    match = _LISTENING.fullmatch(text)
    if match is None or not _is_port(match[3]):
        raise ValueError(f"must be {wanted}")
    host = "127.0.0.1" if match[2] == "localhost" else match[1] or match[2]
    try:
        return Address(str(ipaddress.ip_address(host)), int(match[3]))
    except ValueError:
        raise ValueError(f"{host} is no IP address") from None


def reachable(text: str) -> Address:
    """``name:port`` or an IP address with a port, by which a door is reached; raises ValueError."""
    host, _, port = text.rpartition(":")
    if not _is_port(port) or not _is_host(host) or (":" in host and not host.startswith("[")):
        raise ValueError('must be a host with a port, such as "10.0.0.1:7700" or "head.example.org:7700"')
    return Address(host.strip("[]"), int(port))


def split(address: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address; raises ValueError where its port is none."""
    url = urlsplit(address if "://" in address else f"http://{address}")
    return url.scheme, url.hostname or "", url.port or DEFAULT_PORTS[url.scheme]


def usable(value: dict[str, int]) -> dict[str, int]:
    """Raises ValueError at everything that is no address, and at servers that are there twice."""
    seen: dict[tuple[str, int], str] = {}
    problems = []
    for address in value:
        if not _is_address(address):
            problems.append(_wrong(address))
            continue
        server = split(address)[1:]
        if server in seen:
            problems.append(f'"{address}" and "{seen[server]}" name one server; remove one')
        seen[server] = address
    if problems:
        raise ValueError("; ".join(problems))
    return value


def quoted(value: Any) -> Any:
    """Raises ValueError where dots of an address that is not in quotes have made tables of it."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        if isinstance(inner, dict) and ("." in name or ":" in name):  # no dot outside quotes is part of a name
            raise ValueError(f'behind "{name}" stands one number, -1; servers.remote_slots is for all addresses')
        parts = [name]
        while isinstance(inner, dict) and inner:
            part, inner = next(iter(inner.items()))
            parts.append(part)
        if len(parts) > 1:
            raise ValueError(f'put the address in quotes: "{".".join(parts)}"')
    return value


def _is_address(address: str) -> bool:
    match = _HOST_PORT.match(address)
    return bool(match and _is_host(match[2]) and (match[4] is None or _is_port(match[4])))


def _is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) < 65536


def _is_host(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.strip("[]"))
        return True
    labels = host.removesuffix(".").split(".")
    # Digits and dots alone are no name, and resolvers take such a text for another address than its reader does.
    return all(map(_NAME.fullmatch, labels)) and not labels[-1].isdecimal()


def _wrong(address: str) -> str:
    """What is wrong with a text that is no address, and what may have been meant; a password is not repeated."""
    meant, faults = _mended(address)
    words = f'"{re.sub(r"[^/]*@", "…@", address)}" is not host:port (nor http(s)://host:port)'
    words += f": {', '.join(faults)}" if faults else ""
    return words + (f'; did you mean "{meant}"?' if meant != address and _is_address(meant) else "")


def _mended(address: str) -> tuple[str, list[str]]:
    """The address as it may have been meant, and what has to change."""
    scheme, rest, faults = "", address, []
    if match := _SCHEME.match(address):
        scheme, rest = ("https://" if match[1].lower() == "https" else "http://"), address[match.end() :]
        if match[0] != scheme:
            faults.append(f"{match[0]} is unknown")
    if "@" in rest:
        rest = rest.rpartition("@")[2]
        faults.append("leave out the user (a token belongs in servers.remote_token)")
    rest, slash, path = rest.partition("/")
    if slash:
        faults.append(f"leave out /{path}")
    if "[" not in rest and rest.count(":") > 1:
        rest = _in_brackets(rest)
    elif ":" in rest and not rest.endswith("]"):
        port = rest.rpartition(":")[2]
        faults += [] if _is_port(port) else [f"{port or 'nothing'} is no port"]
    elif (match := _OTHER_COLON.match(rest)) and not _is_host(rest):
        rest = f"{match['host']}:{match['port']}"
    return scheme + rest, faults


def _in_brackets(rest: str) -> str:
    """An IPv6 address; what follows its last colon is a port where it looks like one and an address is left."""
    host, _, port = rest.rpartition(":")
    with contextlib.suppress(ValueError):
        ipaddress.IPv6Address(host)
        if len(port) > 3 and _is_port(port):
            return f"[{host}]:{port}"
    return f"[{rest}]"
