"""Pieces of interactive answers on their way to the main process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from obatchd.dispatch import protocol
from obatchd.dispatch.protocol import OfferItem, TokenItem
from obatchd.frames import Channel
from obatchd.ollama.client import Answer
from obatchd.prompts.reasoning import may_begin

_GATHER_S = 0.05  # people do not see the difference, and the main process is spared many frames
_SIGN_S = 0.005  # until the first sign of an answer that nobody reads in pieces; a shorter answer needs none
_encode = msgspec.json.Encoder().encode


class TokenSender:
    """Sends the pieces of all answers of a worker, in as few frames as people do not notice."""

    def __init__(self, channel: Channel[protocol.ToWorker]) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._streams: dict[Stream, None] = {}  # that have something to send
        self._flushing: asyncio.Handle | None = None
        self._after_s = 0.0  # which that waits

    def soon(self, stream: Stream, after_s: float) -> None:
        """Send what a stream has: in this turn of the loop (0), or in a moment with others."""
        self._streams[stream] = None
        if self._flushing is not None:
            if self._after_s <= after_s:
                return
            self._flushing.cancel()
        self._after_s = after_s
        self._flushing = self._loop.call_later(after_s, self.flush) if after_s else self._loop.call_soon(self.flush)

    def forget(self, stream: Stream) -> None:
        """What it has is not needed any more."""
        self._streams.pop(stream, None)

    def flush(self) -> None:
        """Send all that waits. What is sent later stands later, so results of these answers come after this."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing, self._at_once = None, False
        if self._streams:
            self._channel.send(protocol.Tokens([stream.taken() for stream in self._streams]))
            self._streams.clear()


class Stream:
    """One answer. Implements :class:`obatchd.ollama.client.PieceListener`.

    A ``silent`` one sends its first sign alone. The texts of one that is ``whole`` come in one piece at its end,
    because nobody knows before whether they are the answer: another try may follow.
    """

    def __init__(self, item: OfferItem, sender: TokenSender, *, silent: bool) -> None:
        self.whole = False
        self.opened = ""  # the tag of reasoning that the model's template puts before the answer
        self._item = item
        self._sender = sender
        self._silent = silent
        self._begun = False
        self._held = ""  # text at the beginning that may be reasoning in tags
        self._plain = False  # the text has no such tag: it goes out as it comes
        self._thought = False  # reasoning came beside the text
        self._text: list[str] = []  # these wait to be sent
        self._think: list[str] = []
        self._calls: list[msgspec.Raw] = []

    def piece(self, text: str, think: str, calls: Sequence[msgspec.Raw]) -> None:
        if self._silent or self.whole:
            self._sign()
            return
        if think:
            self._thought = True
            self._think.append(think)
        self._calls += calls
        if text and not self._plain:
            self._held += text
            if (not self.opened or self._thought) and not may_begin(self._held):
                self._plain, text = True, self._held
        if text and self._plain:
            self._text.append(text)
        if self._text or self._think or self._calls:
            self._send()
        else:
            self._sign()

    def end(self, answer: Answer) -> None:
        """The answer is there, without a fault: send what of it was kept back."""
        if self._silent:
            self._sender.forget(self)  # the answer itself is sign enough
            return
        if not self._plain:
            self._text.append(answer.text)
        if not self._thought:
            self._think.append(answer.think)
        if self.whole:
            self._calls += answer.tool_calls
        if any(self._text) or any(self._think) or self._calls:
            self._send()

    def taken(self) -> TokenItem:
        """What is to be sent now."""
        item = self._item
        calls = _encode(self._calls) if self._calls else b""
        taken = TokenItem(item.job, item.line, item.attempt, "".join(self._text), "".join(self._think), calls)
        self._text, self._think, self._calls = [], [], []
        return taken

    def _sign(self) -> None:
        if not self._begun:
            self._send()

    def _send(self) -> None:
        self._sender.soon(self, _GATHER_S if self._begun else _SIGN_S if self._silent else 0.0)
        self._begun = True
