"""A host joins: it shows the head the secret of a link, and gets a credential of its own."""

from __future__ import annotations

import asyncio
import ssl
from typing import NamedTuple

import aiohttp
import msgspec

from obatchd import log
from obatchd.cluster.links import Link
from obatchd.errors import ClusterError
from obatchd.settings.addresses import Address

_WITHIN_S = 20.0
_ANSWER_BYTES = 64 * 1024


class Joined(NamedTuple):
    """What a host has when it has joined."""

    name: str
    head: Address
    fingerprint: str  # sha256:…, of the head's certificate
    credential: str  # for this host alone


class _Answer(msgspec.Struct):
    """Of the head: a credential, or why there is none."""

    credential: str = ""
    code: str = ""
    message: str = ""


def pin(fingerprint: str) -> aiohttp.Fingerprint:
    """Lets aiohttp speak to the holder of that certificate (sha256:…) only; it is looked at before anything is sent."""
    return aiohttp.Fingerprint(bytes.fromhex(fingerprint.removeprefix("sha256:")))


async def join(link: Link, name: str, machine: str, lasts_s: float | None = None) -> Joined:
    """Join as host ``name``; ``machine`` tells this one from others, ``lasts_s`` is for how long it is lent to us.

    Raises ClusterError: ``head_unreachable``, ``wrong_certificate`` (the secret was not sent then), or the code that
    the head gave, with its words.
    """
    asked = {"secret": link.secret, "name": name, "machine": machine, "lasts_s": lasts_s}
    try:
        async with asyncio.timeout(_WITHIN_S), aiohttp.ClientSession(trust_env=False) as http:
            url, known = f"https://{link.head}/v1/join", pin(link.fingerprint)
            async with http.post(url, json=asked, ssl=known, allow_redirects=False) as response:
                status, body = response.status, await response.content.read(_ANSWER_BYTES)
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one, ssl.SSLError too
        raise explained(error, link.head) from None
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        answer = _Answer()
    if answer.credential and status == 200:
        return Joined(name, link.head, link.fingerprint, answer.credential)
    words = answer.message or f"{link.head} answers with status {status}, and not as a head does"
    raise ClusterError(words, code=answer.code or "no_head")


def explained(error: BaseException, head: Address) -> ClusterError:
    """Why a connection to a head came to nothing, in words."""
    match error:
        case aiohttp.ServerFingerprintMismatch():
            return ClusterError(
                f"whoever answers at {head} has another certificate than the head that the link is from, so nothing "
                "was sent. Somebody may stand in between; or the head was installed again: then make another link "
                "there with  obatchctl hosts code",
                code="wrong_certificate",
            )
        case ssl.SSLError() | aiohttp.ClientSSLError():
            words = f"what answers at {head} speaks no TLS: is that the port of [cluster] listen on the head?"
            return ClusterError(words, code="no_head")
        case TimeoutError():
            reason = "no answer came in time"
        case _:
            reason = log.reason(error)
    return ClusterError(
        f"the head cannot be reached at {head}: {reason}. Does obatchd run there with listen in [cluster], and does a "
        "firewall let this host through?",
        code="head_unreachable",
    )
