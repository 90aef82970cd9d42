"""The frames of one session: what one WebSocket message between head and host looks like.

A message is a numbered :class:`Batch` of pieces. Each piece belongs to a channel: 0 carries
:mod:`obatchd.cluster.messages`, every other one is the connection of one worker in its life, and its bytes are
:mod:`obatchd.dispatch.protocol` untouched. Long bytes go in several pieces, so that no message is long: signs of life
arrive on slow links, too, and a peer that sends more than :data:`MESSAGE_BYTES` at once is none of ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from obatchd.errors import ClusterError

CONTROL = 0  # the channel of messages between head and host themselves
PIECE_BYTES = 128 * 1024
MESSAGE_BYTES = 1024 * 1024  # of one WebSocket message at most; batches are filled up to a quarter of that
WHOLE_BYTES = 192 * 2**20  # of the pieces of one message together, and of those of all channels that are not whole yet
PART_BYTES = 256  # that a part takes beside its data, in the tables and queues that it waits in
_MOST_BYTES = WHOLE_BYTES + 4 * 2**20


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """A part of what is said on one channel; ``more`` of it follows on the same channel."""

    channel: int
    data: bytes
    more: bool = False


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """One WebSocket message; ``number`` counts up from 1 in each direction. Without pieces it is a sign of life."""

    number: int
    pieces: list[Piece]


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Batch)


def pieces(channel: int, data: bytes) -> Iterator[Piece]:
    """``data`` in pieces of :data:`PIECE_BYTES` at most; one where it is empty."""
    if len(data) <= PIECE_BYTES:
        yield Piece(channel, data)
        return
    for begin in range(0, len(data), PIECE_BYTES):
        yield Piece(channel, data[begin : begin + PIECE_BYTES], begin + PIECE_BYTES < len(data))


def encode(batch: Batch) -> bytes:
    return _encode(batch)


class Receiver:
    """Puts pieces together again, and sees that no batch is missing or comes twice."""

    def __init__(self) -> None:
        self._number = 0
        self._parts: dict[int, list[bytes]] = {}  # by channel
        self._size = 0  # of all parts, with what each takes beside its data

    def received(self, message: bytes) -> Iterator[tuple[int, bytes]]:
        """What is whole now: the channel and its bytes.

        Raises ClusterError: ``bad_frame`` where the message is none, or too much is not whole, ``out_of_step`` where a
        batch is missing or came twice.
        """
        try:
            batch = _decoder.decode(message)
        except msgspec.DecodeError as error:
            raise ClusterError(f"a message that is none: {error}", code="bad_frame") from None
        self._number += 1
        if batch.number != self._number:
            words = f"batch {batch.number} came where {self._number} was due"
            raise ClusterError(words, code="out_of_step")
        for piece in batch.pieces:
            if not piece.more and piece.channel not in self._parts:
                yield piece.channel, piece.data
                continue
            self._size += len(piece.data) + PART_BYTES
            if self._size > _MOST_BYTES:
                words = f"more than {WHOLE_BYTES // 2**20} MiB in messages that are not whole"
                raise ClusterError(words, code="bad_frame")
            parts = self._parts.setdefault(piece.channel, [])
            parts.append(piece.data)
            if not piece.more:
                del self._parts[piece.channel]
                whole = b"".join(parts)
                self._size -= len(whole) + PART_BYTES * len(parts)
                yield piece.channel, whole
