"""The link by which a host joins: where the head is, how it is known, and the secret that lets the host in."""

from __future__ import annotations

import re
from typing import NamedTuple

from obatchd.errors import ClusterError
from obatchd.settings.addresses import Address, reachable

SHAPE = "obatch://head:7700/#…"
_LINK = re.compile(r"obatch://(?P<head>[^/#\s]+)/?#(?P<secret>[A-Za-z0-9_-]{16,128})\.(?P<pin>[0-9a-f]{64})")


class Link(NamedTuple):
    """One of them. Whoever has it may join as long as its secret is good."""

    head: Address
    secret: str
    fingerprint: str  # sha256:…, of the head's certificate

    def __str__(self) -> str:
        return f"obatch://{self.head}/#{self.secret}.{self.fingerprint.removeprefix('sha256:')}"


def parse(text: str) -> Link:
    """Raises ClusterError (``no_link``); the message does not repeat the text, which may hold a secret."""
    words = f"that is no link to a head, which looks like {SHAPE} and is one word"
    match = _LINK.fullmatch(text.strip())
    if match is None:
        if text.strip().startswith("obatch://"):
            words = f"that link is not whole: copy all of the line that begins with obatch:// ({SHAPE})"
        raise ClusterError(f"{words}. On the head, obatchctl hosts code makes one", code="no_link")
    try:
        head = reachable(match["head"])
    except ValueError as error:
        raise ClusterError(f"{words}: the head {error}", code="no_link") from None
    return Link(head, match["secret"], f"sha256:{match['pin']}")
