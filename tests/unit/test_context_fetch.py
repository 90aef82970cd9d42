"""Fetching: every kind of page and trick ends in the right text or error, and nothing forbidden is reached."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from web_support import Names, Web, serving
from yarl import URL

from obatchd.context.addresses import AddressPolicy
from obatchd.context.cache import SourceCache
from obatchd.context.compose import parsed_url
from obatchd.context.fetch import Fetched, Fetcher
from obatchd.context.parsing import Text, text_of
from obatchd.errors import SourceError
from obatchd.settings.tables.context import ContextSettings

OPEN, SHUT = "127.0.0.2", "127.0.0.1"  # the first is in the allow-list of these tests
QUICK = {"enabled": True, "allow": [f"{OPEN}/32"], "host_pause_s": 0, "timeout_s": 2, "max_bytes": 100_000}


async def parse(content: bytes, media_type: str, charset: str) -> Text:
    return text_of(content, media_type, charset, 1000)


class Bench:
    """A fetcher, an open and a shut web server, and the names of the test."""

    def __init__(self, directory: Path, webs: list[Web]) -> None:
        self.open, self.shut = webs
        self.directory = directory
        self.names = Names()
        self._stack = contextlib.AsyncExitStack()

    async def fetcher(self, **settings: object) -> Fetcher:
        rules = ContextSettings(**{**QUICK, **settings})  # type: ignore[arg-type]
        fetcher = Fetcher(rules, SourceCache(self.directory, rules.cache_bytes), parse, self.names)
        self._stack.push_async_callback(fetcher.close)
        return fetcher

    async def fetch(self, url: str, **settings: object) -> Fetched:
        return await (await self.fetcher(**settings)).fetch(1000, parsed_url(url))

    async def code(self, url: str, **settings: object) -> str:
        """How the fetch fails."""
        with pytest.raises(SourceError) as caught:
            await self.fetch(url, **settings)
        return caught.value.code

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(OPEN, SHUT) as webs:
        bench = Bench(tmp_path, webs)
        yield bench
        await bench.close()
        assert not bench.shut.hits, "a forbidden server was reached"


async def test_a_page_is_fetched_once_and_its_text_found(bench: Bench) -> None:
    url = bench.open.page("/a", b"plain words", "text/plain")
    fetcher = await bench.fetcher()
    first = await fetcher.fetch(1, URL(url))
    again = await fetcher.fetch(1, URL(url))
    other = await fetcher.fetch(2, URL(url))
    assert (first.text.text, first.cached, again.cached, other.cached) == ("plain words", False, True, False)
    assert bench.open.hits["/a"] == 2  # nothing is shared between owners
    assert bench.open.seen[0]["user-agent"] == "obatchd"
    assert "cookie" not in bench.open.seen[0]


async def test_an_old_text_is_asked_for_with_its_validators(bench: Bench) -> None:
    url = bench.open.page("/a", b"old", "text/plain", ETag='"1"', Last_Modified="Mon, 23 Nov 2026 10:00:00 GMT")
    fetcher = await bench.fetcher(cache_s=0)
    await fetcher.fetch(1, URL(url))
    bench.open.page("/a", b"", status="304 Not Modified")
    assert await fetcher.fetch(1, URL(url)) == (("", "old"), url, True)
    assert bench.open.seen[1]["if-none-match"] == '"1"'
    assert bench.open.seen[1]["if-modified-since"] == "Mon, 23 Nov 2026 10:00:00 GMT"
    bench.open.page("/a", b"new", "text/plain")
    assert (await fetcher.fetch(1, URL(url))).text.text == "new"


async def test_what_a_server_wants_kept_or_not(bench: Bench) -> None:
    kept = bench.open.page("/kept", b"x", "text/plain", Cache_Control="public, max-age=60")
    never = bench.open.page("/never", b"x", "text/plain", Cache_Control="no-store")
    fetcher = await bench.fetcher(cache_s=0)
    for url in (kept, kept, never, never):
        await fetcher.fetch(1, URL(url))
    assert (bench.open.hits["/kept"], bench.open.hits["/never"]) == (1, 2)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(bench: Bench, status: int) -> None:
    bench.open.redirect("/1", "/2", status)
    bench.open.redirect("/2", bench.open.url("/3#part"))
    bench.open.page("/3", b"there", "text/plain")
    assert await bench.fetch(bench.open.url("/1")) == (("", "there"), bench.open.url("/3"), False)


async def test_redirects_to_where_a_fetch_may_not_go(bench: Bench) -> None:
    bench.open.redirect("/loopback", bench.shut.url("/secret"))
    bench.open.redirect("/metadata", "http://169.254.169.254/latest/meta-data/")
    bench.open.redirect("/decimal", f"http://2130706433:{bench.shut.port}/secret")
    bench.open.redirect("/file", "file:///etc/passwd")
    bench.open.redirect("/nowhere", "")
    bench.open.redirect("/circle", "/circle2")
    bench.open.redirect("/circle2", "/circle")
    for hop in range(8):
        bench.open.redirect(f"/long{hop}", f"/long{hop + 1}")
    codes = {}
    for path in ("/loopback", "/metadata", "/decimal", "/file", "/nowhere", "/circle", "/long0"):
        codes[path] = await bench.code(bench.open.url(path))
    assert codes == {
        "/loopback": "url_forbidden", "/metadata": "url_forbidden", "/decimal": "url_forbidden",
        "/file": "redirects", "/nowhere": "redirects", "/circle": "redirects", "/long0": "redirects",
    }  # fmt: skip


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "127.0.1", "127.0.0.1.", "0",
        "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fe80::1]", "[fc00::1]", "[fec0::1]",
        "[ff02::1]", "①②⑦.⓪.⓪.①", "127。0。0。1", "169.254.169.254", "[::ffff:169.254.169.254]", "[fd00:ec2::254]",
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
        "255.255.255.255",
    ],
)  # fmt: skip
async def test_no_spelling_of_a_private_address_is_reached(bench: Bench, host: str) -> None:
    url = f"http://{host}:{bench.shut.port}/secret"
    bench.names.table |= {spelled: iter([[SHUT]]) for spelled in ("0x7f000001", "0x7f.0.0.1", "127.0.0.1")}
    assert await bench.code(url) in ("url_forbidden", "url_invalid")


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org/", "file:///etc/passwd", "gopher://example.org/", "http://", "http:///x", "//example.org/", "x",
     "http://user:secret@example.org/", "http://example.org:99999/", "http://[::1", "http://exa mple.org/",
     "http://example.org/" + "x" * 5000],
)  # fmt: skip
async def test_what_is_no_url_to_fetch(bench: Bench, url: str) -> None:
    assert await bench.code(url) == "url_invalid"


async def test_names_are_judged_by_what_they_resolve_to(bench: Bench) -> None:
    bench.open.page("/a", b"words", "text/plain")
    port = bench.open.port
    # open.test has one good address among bad ones; rebind.test is good when it is judged, and bad ever after.
    bench.names = Names(
        open_test=[[SHUT, "10.0.0.1", OPEN]], shut_test=[[SHUT]], rebind_test=[[OPEN], [SHUT], [SHUT]],
        v6_test=[["::1"]], mapped_test=[["::ffff:127.0.0.1"]],
    )  # fmt: skip
    assert (await bench.fetch(f"http://open.test:{port}/a")).text.text == "words"
    assert await bench.code(f"http://shut.test:{bench.shut.port}/secret") == "url_forbidden"
    assert await bench.code(f"http://v6.test:{bench.shut.port}/secret") == "url_forbidden"
    assert await bench.code(f"http://mapped.test:{bench.shut.port}/secret") == "url_forbidden"
    assert await bench.code(f"http://unknown.test:{port}/") == "fetch_failed"
    assert (await bench.fetch(f"http://rebind.test:{port}/a", cache_bytes=0)).text.text == "words"
    assert bench.names.asked.count("rebind.test") == 1  # one question, one connection
    assert await bench.code(f"http://rebind.test:{port}/a", cache_bytes=0) == "url_forbidden"
    bench.open.redirect("/back", f"http://rebind.test:{bench.shut.port}/secret")
    assert await bench.code(bench.open.url("/back")) == "url_forbidden"


async def test_an_administrator_opens_hosts_ports_and_networks(bench: Bench) -> None:
    policy = AddressPolicy(["*.lab", "wiki.lan:8080", "10.1.0.0/16", "[fd00::1]:80"])
    for url, address, expected in (
        ("http://a.lab/", "10.9.9.9", True), ("http://lab/", "10.9.9.9", False),
        ("http://wiki.lan:8080/", "10.9.9.9", True), ("http://wiki.lan/", "10.9.9.9", False),
        ("http://any.example/", "10.1.200.3", True), ("http://any.example/", "10.2.0.1", False),
        ("http://x.example/", "fd00::1", True), ("http://x.example:81/", "fd00::1", False),
        ("http://x.example/", "93.184.215.14", True), ("http://x.example/", "2606:4700::1111", True),
        ("http://x.example/", "::ffff:93.184.215.14", True), ("http://x.example/", "nonsense", False),
    ):  # fmt: skip
        assert policy.permits(policy.target(URL(url)), address) is expected, (url, address)


async def test_slow_endless_and_huge_answers(bench: Bench) -> None:
    began_s = time.monotonic()
    codes = await asyncio.gather(
        *(bench.code(bench.open.url(path), timeout_s=0.5) for path in ("/silent", "/trickle", "/headers")),
        bench.code(bench.open.url("/endless")),
        bench.code(bench.open.page("/huge", b"x" * 100_001, "text/plain")),
        bench.code(bench.open.packed("/bomb", 50_000_000)),
        bench.code(bench.open.url("/cut")),
        bench.code(bench.open.url("/garbage")),
        bench.code(bench.open.url("/missing")),
    )
    assert codes[:2] == ["fetch_timeout", "fetch_timeout"]
    assert codes[2] in ("fetch_timeout", "fetch_failed")
    assert codes[3:6] == ["source_too_large"] * 3
    assert codes[6:] == ["fetch_failed"] * 3
    assert time.monotonic() - began_s < 20


async def test_packed_answers(bench: Bench) -> None:
    packed = gzip.compress(b"words in a bag")
    pages = {
        "/gzip": bench.open.page("/gzip", packed, "text/plain", Content_Encoding="gzip"),
        "/deflate": bench.open.page(
            "/deflate", zlib.compress(b"words in a bag"), "text/plain", Content_Encoding="deflate"
        ),
    }
    for url in pages.values():
        assert (await bench.fetch(url)).text.text == "words in a bag"
    assert (
        await bench.code(bench.open.page("/torn", packed[:-9], "text/plain", Content_Encoding="gzip")) == "fetch_failed"
    )
    assert await bench.code(bench.open.page("/lie", b"plain", "text/plain", Content_Encoding="gzip")) == "fetch_failed"
    assert await bench.code(bench.open.page("/br", b"x", "text/plain", Content_Encoding="br")) == "source_unsupported"


async def test_charsets_that_are_not_what_the_server_says(bench: Bench) -> None:
    for charset, content in (
        ("utf-8", "naïve".encode("latin-1")),
        ("koi8-r", "naïve".encode()),
        ("nonsense", b"na\xefve"),
    ):
        url = bench.open.page(f"/{charset}", content, f"text/plain; charset={charset}")
        assert (await bench.fetch(url)).text.text == "naïve"


async def test_one_host_is_asked_politely(bench: Bench) -> None:
    for number in range(4):
        bench.open.page(f"/{number}", b"x", "text/plain")
    fetcher = await bench.fetcher(host_pause_s=0.1)
    began_s = time.monotonic()
    await asyncio.gather(*(fetcher.fetch(1, URL(bench.open.url(f"/{number}"))) for number in range(4)))
    assert time.monotonic() - began_s >= 0.3
    bench.open.page("/busy", b"", status="429 Too Many Requests", Retry_After="0")
    with pytest.raises(SourceError, match="answered 429"):
        await fetcher.fetch(1, URL(bench.open.url("/busy")))
    assert bench.open.hits["/busy"] == 2
