"""One URL to one text: within limits of time, size and redirects, and only where ``context.addresses`` allows."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.helpers import parse_mimetype
from yarl import URL

from obatchd.context.addresses import AddressPolicy, PinnedResolver
from obatchd.context.cache import Entry, SourceCache, is_fresh
from obatchd.context.parsing import Text
from obatchd.errors import SourceError
from obatchd.settings.tables.context import ContextSettings

_READ_BYTES = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (429, 503)
_BUSY_WAIT_S = 5.0  # where the server does not say how long
_BUSY_LIMIT_S = 30.0
_HOSTS_LIMIT = 1000
_ACCEPT = "text/html, application/xhtml+xml, text/plain, text/markdown, application/pdf;q=0.9, */*;q=0.1"

Parser = Callable[[bytes, str, str], Awaitable[Text]]  # content, media type, charset; raises SourceError


class Fetched(NamedTuple):
    """A source's text, and how it was come by."""

    text: Text
    url: str  # where redirects led
    cached: bool


class _Host:
    """Politeness to one host: one request at a time, with a pause between."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.free_s = 0.0  # monotonic


class Fetcher:
    """Fetches for all owners; close it in the end. Names are resolved by the system unless ``resolver`` is given."""

    def __init__(
        self, rules: ContextSettings, cache: SourceCache, parse: Parser, resolver: AbstractResolver | None = None
    ) -> None:
        self._cache = cache
        self._parse = parse
        self._resolver = PinnedResolver(AddressPolicy(), resolver or aiohttp.ThreadedResolver())
        self._session = aiohttp.ClientSession(
            connector=self._resolver.connector(),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=_READ_BYTES,
        )
        self._hosts: dict[str, _Host] = {}
        self.apply(rules)

    def apply(self, rules: ContextSettings) -> None:
        """Use changed rules from now on."""
        self._rules = rules
        self._cache.limit_bytes = rules.cache_bytes
        self._resolver.policy = AddressPolicy(rules.allow)

    async def close(self) -> None:
        await self._session.close()

    async def fetch(self, owner: int, url: URL) -> Fetched:
        """The text behind ``url``, from the owner's cache where that is fresh; raises SourceError if there is none."""
        self._resolver.policy.target(url)  # also where it is cached: a forbidden address is not read from there
        known = self._cache.get(owner, str(url))
        if known is not None and is_fresh(known):
            return Fetched(Text(known.title, known.text), str(url), True)
        asked = {"If-None-Match": known.etag, "If-Modified-Since": known.last_modified} if known else {}
        answer, content = await self._follow(url, {name: value for name, value in asked.items() if value})
        if answer.status == 304 and known is not None:
            known.checked_s, known.fresh_s = time.time(), self._fresh_s(answer.headers)
            self._cache.put(owner, known)
            return Fetched(Text(known.title, known.text), str(answer.url), True)
        kind = parse_mimetype(answer.headers.get("Content-Type", ""))
        media_type = f"{kind.type}/{kind.subtype}".lower().strip("/")
        text = await self._parse(content, media_type, kind.parameters.get("charset", ""))
        self._keep(owner, url, text, answer.headers)
        return Fetched(text, str(answer.url), False)

    def _keep(self, owner: int, url: URL, text: Text, headers: Mapping[str, str]) -> None:
        if "no-store" in headers.get("Cache-Control", "").lower() or not self._rules.cache_bytes:
            return
        fresh_s = self._fresh_s(headers)
        etag, modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
        if fresh_s or etag or modified:
            self._cache.put(owner, Entry(str(url), *text, time.time(), fresh_s, etag, modified))

    def _fresh_s(self, headers: Mapping[str, str]) -> float:
        """How long an answer need not be asked for again: ours, or the server's where it says more or none."""
        control = headers.get("Cache-Control", "").lower()
        if "no-cache" in control or "no-store" in control:
            return 0.0
        said = re.search(r"max-age=(\d{1,9})", control)
        return max(self._rules.cache_s, float(said[1]) if said else 0.0)

    async def _follow(self, url: URL, headers: dict[str, str]) -> tuple[aiohttp.ClientResponse, bytes]:
        """The answer at the end of the redirects, each of them judged like the first URL, and its content."""
        seen = {url}
        left_s, waited = self._rules.timeout_s, False
        while True:
            begun_s = time.monotonic()
            try:
                async with self._turn_at(url.raw_host or "") as waiting_s:
                    async with asyncio.timeout(left_s):
                        answer, content = await self._ask(url, headers)
            except TimeoutError:
                raise SourceError(f"it did not come within {self._rules.timeout_s:g} s", code="fetch_timeout") from None
            left_s -= time.monotonic() - begun_s - waiting_s
            if answer.status in _BUSY and not waited:
                waited = True
                said = answer.headers.get("Retry-After", "")
                await asyncio.sleep(min(float(said), _BUSY_LIMIT_S) if said.isdecimal() else _BUSY_WAIT_S)
                continue
            if answer.status in (200, 304):
                return answer, content
            if answer.status not in _REDIRECTS:
                raise SourceError(f"its server answered {answer.status}", code="fetch_failed")
            url = _location(url, answer.headers)
            if url in seen:
                raise SourceError(f"it is redirected in a circle, to {url}", code="redirects")
            seen.add(url)
            if len(seen) > self._rules.max_redirects + 1:
                raise SourceError(f"it is redirected more than {self._rules.max_redirects} times", code="redirects")

    @contextlib.asynccontextmanager
    async def _turn_at(self, name: str) -> AsyncIterator[float]:
        """Wait until the host may be asked; gives how long that took, which is not the host's fault."""
        if len(self._hosts) > _HOSTS_LIMIT:
            self._hosts = {key: host for key, host in self._hosts.items() if host.lock.locked()}
        host = self._hosts.setdefault(name, _Host())
        begun_s = time.monotonic()
        async with host.lock:
            await asyncio.sleep(max(0.0, host.free_s - time.monotonic()))
            try:
                yield time.monotonic() - begun_s
            finally:
                host.free_s = time.monotonic() + self._rules.host_pause_s

    async def _ask(self, url: URL, headers: dict[str, str]) -> tuple[aiohttp.ClientResponse, bytes]:
        self._resolver.admit(url)
        asked = {"User-Agent": self._rules.user_agent, "Accept": _ACCEPT, "Accept-Encoding": "gzip", **headers}
        try:
            async with self._session.get(url, headers=asked, allow_redirects=False) as response:
                return response, await self._content(response) if response.status == 200 else b""
        except aiohttp.ClientError as error:
            raise SourceError(f"it cannot be fetched: {error}", code="fetch_failed") from error
        except (ValueError, zlib.error) as error:
            raise SourceError(f"its server's answer is broken: {error}", code="fetch_failed") from error

    async def _content(self, response: aiohttp.ClientResponse) -> bytes:
        """The body, unpacked: never more than the limit in memory, however small it comes packed."""
        limit_bytes = self._rules.max_bytes
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise SourceError(f"it is packed as {encoding}, which nobody asked for", code="source_unsupported")
        unpack = None if encoding in ("identity", "") else zlib.decompressobj(wbits=47)  # 47: gzip or zlib by its head
        content, received = bytearray(), 0
        async for block in response.content.iter_chunked(_READ_BYTES):
            received += len(block)
            content += block if unpack is None else unpack.decompress(block, limit_bytes + 1 - len(content))
            if len(content) > limit_bytes or received > limit_bytes:
                raise SourceError(f"it has more than {limit_bytes} bytes (max_bytes)", code="source_too_large")
        if unpack is not None and not unpack.eof:
            raise SourceError("it ends in the middle", code="fetch_failed")
        return bytes(content)


def _location(url: URL, headers: Mapping[str, str]) -> URL:
    to = headers.get("Location", "")
    try:
        found = url.join(URL(to)).with_fragment(None)
    except ValueError:
        found = URL()
    if not to or found.scheme not in ("http", "https"):
        raise SourceError(f"it is redirected to {to[:200]!r}, which is no http or https URL", code="redirects")
    return found
