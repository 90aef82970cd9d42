"""Requests of a job that share a long beginning: families.

A server keeps the computed beginning of the last prompt in each of its slots, so requests with the same beginning cost
less one after another in one slot. A *beginning* is the chain of checksums over blocks of what is sent: two requests
have the same n-th checksum where they share the first n blocks. The whole job's common beginning counts for nothing,
because every slot has it anyway. One pass, with the memory of some hundreds of long requests.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect, bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import TYPE_CHECKING
from zlib import crc32

import msgspec

if TYPE_CHECKING:
    from obatchd.jobs.formats.request import Request
    from obatchd.jobs.model import Entry

# Beginnings shorter than this, about 256 tokens, are computed faster than it takes to look after them.
WORTH_BYTES = 1024
# The ends of blocks in bytes: fine where most prompts part, coarse behind; nobody looks further.
_ENDS = (*range(512, 4097, 512), *range(5120, 8193, 1024), *range(10_240, 32_769, 2048), *range(40_960, 131_073, 8192))
_BLOCKS = [slice(start, end) for start, end in zip((0, *_ENDS), _ENDS, strict=False)]
_STAND_IN = 1024  # bytes that an image or a source counts for
_REMEMBERED = 16_384  # checksums
_VOTES = 64  # requests of a batch that are asked for the beginning that the whole job shares
_encode = msgspec.json.Encoder(order="sorted").encode


def beginning(request: Request) -> bytes:
    """The checksums of the first blocks of what is sent for ``request``, 4 bytes each; empty where it is short.

    In the order of a prompt: its system message (that of the job is every request's), tools, sources by name, and
    messages, images by digest. What the sources hold is not known when this is computed. Texts for vectors have none.
    """
    if request.embed is not None:
        return b""
    sent = _sent(request)
    if len(sent) < WORTH_BYTES:
        return b""
    chain, checksum = array("I"), 0
    for block in _BLOCKS[: bisect(_ENDS, len(sent))]:
        checksum = crc32(sent[block], checksum)
        chain.append(checksum)
    return chain.tobytes()


def _sent(request: Request) -> bytes:
    limit = _ENDS[-1]
    if not (request.messages or request.images or request.system or request.tools or request.urls or request.files):
        return request.prompt[:limit].encode(errors="surrogatepass")
    parts: list[bytes] = []
    size = 0
    for part in _parts(request):
        parts.append(part[:limit])
        if (size := size + len(part)) >= limit:
            break
    return b"".join(parts)[:limit]


def _parts(request: Request) -> Iterator[bytes]:
    if request.system:
        yield _text(request.system)
    if request.tools:
        yield _encode(request.tools)
    for name in (*request.urls, *request.files):
        yield _stand_in(name)
    for message in request.messages:
        yield _text(f"\n{message.get('role', '')}:")
        for image in message.get("images", ()):
            yield _stand_in(image)
        yield _text(str(message.get("content", "")))
        if calls := message.get("tool_calls"):
            yield _encode(calls)
    if not request.messages:
        for image in request.images:
            yield _stand_in(image)
        yield _text(request.prompt)


def _text(text: str) -> bytes:
    return text[: _ENDS[-1]].encode(errors="surrogatepass")


def _stand_in(thing: str) -> bytes:
    """What stands for an image or a source."""
    return hashlib.sha256(thing.encode(errors="surrogatepass")).digest() * (_STAND_IN // 32)


class _Family:
    """One family: the line of its first request is its number, ``worth`` the bytes that its requests share."""

    __slots__ = ("number", "worth")

    def __init__(self, number: int, worth: int = 0) -> None:
        self.number = number
        self.worth = worth  # 0: it has one member


class Families:
    """Finds the families of one job, batch by batch in input order."""

    def __init__(self) -> None:
        self._known: dict[int, _Family | None] = {}  # by checksum; None: one request has it, whose family is elsewhere
        self._common: list[list[int]] = []  # of each block, the checksum that most requests have, and its lead
        self._votes = 0

    def assigned(self, entries: list[Entry]) -> list[Entry]:
        """``entries`` with their families, in place of their beginnings."""
        long = [entry for entry in entries if entry.beginning]
        if not long:
            return entries
        chains = [array("I", entry.beginning) for entry in long]
        self._vote(chains)
        common = [checksum for checksum, _ in takewhile(lambda place: 2 * place[1] >= self._votes, self._common)]
        numbers = iter(self._numbers([entry.line for entry in long], chains, common))
        replace = msgspec.structs.replace
        return [replace(entry, family=next(numbers), beginning=b"") if entry.beginning else entry for entry in entries]

    def _vote(self, chains: Sequence[array[int]]) -> None:
        """Ask some requests for the beginning that the whole job shares: for each block the majority (Boyer, Moore)."""
        for chain in chains[:: -(-len(chains) // _VOTES)]:
            self._votes += 1
            while len(self._common) < len(chain):
                self._common.append([0, 0])
            for place, checksum in zip(self._common, chain, strict=False):
                if place[0] == checksum:
                    place[1] += 1
                elif place[1]:
                    place[1] -= 1
                else:
                    place[:] = [checksum, 1]
            for place in self._common[len(chain) :]:
                place[1] = max(0, place[1] - 1)

    def _numbers(self, lines: list[int], chains: list[array[int]], common: list[int]) -> list[int | None]:
        known = self._known
        places = [_first_worthwhile(chain, common) for chain in chains]
        later: set[int] = set()  # checksums down to which a request further on agrees with an earlier one
        agreed: list[int] = []  # how many blocks each shares with an earlier one
        for chain, (_, first) in zip(chains, places, strict=True):
            level = len(chain)
            while level > first and (checksum := chain[level - 1]) not in known:
                known[checksum] = None
                level -= 1
            if level > first:
                later.add(chain[level - 1])
            agreed.append(level)
        numbers = []
        for line, chain, (shared, first), level in zip(lines, chains, places, agreed, strict=True):
            deepest = len(chain) if later else level
            while deepest > level and chain[deepest - 1] not in later:
                deepest -= 1
            numbers.append(self._number(line, chain, shared, first, deepest))
        for checksum in list(islice(known, max(0, len(known) - _REMEMBERED))):
            del known[checksum]
        return numbers

    def _number(self, line: int, chain: array[int], shared: int, first: int, level: int) -> int | None:
        """The family of a request that shares ``level`` blocks with others, of which ``shared`` are everybody's."""
        if len(chain) <= first:
            return None
        known, origin = self._known, _ENDS[shared - 1] if shared else 0
        worth = _ENDS[level - 1] - origin if level > first else 0
        lowest = level
        while lowest > first and 2 * (_ENDS[lowest - 1] - origin) >= worth:
            family = known.get(chain[lowest - 1])
            if family is not None and family.worth <= 2 * worth and (not family.worth or worth <= 2 * family.worth):
                family.worth = family.worth or worth
                return family.number
            lowest -= 1
        # Its own: found by the blocks at which others may join, of one without others by all.
        family = _Family(line, worth)
        for checksum in chain[lowest:level] if worth else chain[first:]:
            if worth or not known.get(checksum):
                known[checksum] = family
        return line


# After so many blocks that everybody shares, how many more are worth nothing yet.
_FIRST = [bisect_left(_ENDS, end + WORTH_BYTES) for end in (0, *_ENDS)]


def _first_worthwhile(chain: array[int], common: list[int]) -> tuple[int, int]:
    """How many blocks of a request everybody shares, and from which on its own are worth something."""
    shared = 0
    for checksum, everybodys in zip(chain, common, strict=False):
        if checksum != everybodys:
            break
        shared += 1
    return shared, _FIRST[shared]
