"""Frames of workers that are too long for a session: results in frames of their own; answers that are too long fail.

The head would end each session in which such a frame comes (:data:`obatchd.cluster.wire.WHOLE_BYTES`), and so would the
next one, with the same request.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from obatchd.cluster import wire
from obatchd.dispatch import protocol, records
from obatchd.errors import ClusterError
from obatchd.ollama.faults import Cause
from obatchd.words import binary_size

LONGEST_BYTES = wire.WHOLE_BYTES * 2 // 3  # leaves room for pieces of others that are not whole yet
_LONGEST_RECORD_BYTES = LONGEST_BYTES - 2**20  # the rest of its frame has short texts
_encode = msgspec.msgpack.Encoder().encode


def shortened(frame: bytes) -> Iterator[bytes]:
    """The results of a long frame, one to each frame. Raises ClusterError (``bad_frame``) where it has none."""
    message = protocol.to_main.decode(frame)
    if not isinstance(message, protocol.Results):
        raise ClusterError(f"a worker sent {binary_size(len(frame))} in one frame", code="bad_frame")
    for item in message.items:
        if len(item.record) > _LONGEST_RECORD_BYTES:
            item = _failed(item)
        yield _encode(protocol.Results([item]))


def _failed(item: protocol.ResultItem) -> protocol.ResultItem:
    words = (
        f"the answer and its request together are {binary_size(len(item.record))} long, more than travels from a host "
        f"to the head ({binary_size(_LONGEST_RECORD_BYTES)})"
    )
    fault = Cause.TOO_LONG.fault(words)
    record = records.without_answer(item.record, fault)
    return msgspec.structs.replace(
        item, succeeded=False, record=record, fault=fault.kind, code=fault.code, message=fault.message
    )
