"""Where a fetch may go: public addresses, and those that the administrator has opened beside them.

A request may name any URL, so a fetch must not become a way into the network that the daemon stands in: its loopback,
its neighbours, the metadata service of its cloud (server-side request forgery). What counts is the address that a
connection really goes to, so a name is judged by what it resolves to, and the connection uses exactly that.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from obatchd.errors import SourceError
from obatchd.settings.tables.context import Opened, opened

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_URL_CHARACTERS = 4096
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]+)?")  # a name, an address
# Prefixes that carry an IPv4 address in their last 32 bits: IPv4-compatible and IPv4-mapped (RFC 4291), translated
# (RFC 2765), NAT64 (RFC 6052, RFC 8215).
_CARRIERS = tuple(
    map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
)
# Tunnels, whose other end is somewhere in the address: 6to4 (RFC 3056), Teredo (RFC 4380), ISATAP's ff by its words.
_TUNNELS = tuple(map(ipaddress.IPv6Network, ("2002::/16", "2001::/32")))
_SITE_LOCAL = ipaddress.IPv6Network("fec0::/10")


def is_public(address: _Address) -> bool:
    """Whether an address is one of the public internet, in whatever clothes it comes."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None or address in _SITE_LOCAL or any(address in tunnel for tunnel in _TUNNELS):
            return False
        if any(address in carrier for carrier in _CARRIERS):
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)) and address not in _CARRIERS[0]
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class Target(NamedTuple):
    """A checked URL's server."""

    host: str
    port: int


class AddressPolicy:
    """Judges URLs and addresses."""

    def __init__(self, allow: Sequence[str] = (), table: str = "context") -> None:
        self._opened = [opened(entry) for entry in allow]
        self._table = table  # of the settings, where ``allow`` comes from

    def target(self, url: URL) -> Target:
        """The server of a URL that may be asked, as far as can be told before its name is resolved.

        Raises SourceError ``url_invalid`` or ``url_forbidden``.
        """
        if len(str(url)) > _URL_CHARACTERS:
            raise SourceError(f"the URL has more than {_URL_CHARACTERS} characters", code="url_invalid")
        if url.scheme not in ("http", "https") or not _HOST.fullmatch(url.raw_host or ""):
            raise SourceError(f"{url} is no http or https URL", code="url_invalid")
        if url.raw_user is not None or url.raw_password is not None:
            raise SourceError("a URL with a user or password in it is not fetched", code="url_invalid")
        target = Target((url.raw_host or "").lower().rstrip("."), url.port or 80)
        if ":" in target.host or re.fullmatch(r"[\d.]+", target.host):
            self.require(target, target.host)
        return target

    def require(self, target: Target, address: str) -> None:
        """Make sure that ``address`` may be connected to for ``target``; raises SourceError ``url_forbidden``."""
        if not self.permits(target, address):
            raise SourceError(
                f"{target.host} is at {address}, which is no public address; an administrator can open it with allow "
                f"in [{self._table}]",
                code="url_forbidden",
            )

    def permits(self, target: Target, address: str) -> bool:
        """Whether ``address`` is public or opened. A text that is no proper address, such as ``127.1``, is neither."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return is_public(parsed) or any(self._opens(entry, target, parsed) for entry in self._opened)

    @staticmethod
    def _opens(entry: Opened, target: Target, address: _Address) -> bool:
        if entry.port not in (0, target.port):
            return False
        if entry.network is not None:
            return address in entry.network
        return fnmatch.fnmatchcase(target.host, entry.pattern)


class PinnedResolver(AbstractResolver):
    """Resolves a name for one connection, which then has no other address to go to than those judged here."""

    def __init__(self, policy: AddressPolicy, inner: AbstractResolver) -> None:
        self.policy = policy
        self._inner = inner
        self._judged: dict[tuple[str, int], None] = {}

    def connector(self) -> aiohttp.TCPConnector:
        """For a session that can connect to nothing else."""
        return aiohttp.TCPConnector(
            resolver=self, use_dns_cache=False, force_close=True, socket_factory=self.open_socket
        )

    def admit(self, url: URL) -> None:
        """Make sure that a URL may be asked now; raises SourceError as :meth:`AddressPolicy.target` does."""
        target = self.policy.target(url)
        if ":" in target.host or target.host.replace(".", "").isdigit():
            self.remember(*target)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        target = Target(host.lower().rstrip("."), port)
        allowed = [result for result in found if self.policy.permits(target, result["host"])]
        if found and not allowed:
            self.policy.require(target, found[0]["host"])
        for result in allowed:
            self.remember(result["host"], port)
        return allowed

    def open_socket(self, info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        """The last line of defence: a socket only for an address that was judged."""
        family, kind, protocol, _, address = info
        if (address[0], address[1]) not in self._judged:
            raise OSError(f"{address[0]} was not judged before the connection")
        return socket.socket(family, kind, protocol)

    def remember(self, address: str, port: int) -> None:
        """An address was judged; also from outside where the host of a checked URL is one: it is not resolved."""
        self._judged.pop((address, port), None)
        self._judged[address, port] = None
        if len(self._judged) > 10_000:
            del self._judged[next(iter(self._judged))]

    async def close(self) -> None:
        await self._inner.close()
