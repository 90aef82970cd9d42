"""How an answer is read: as a whole, or line by line as it arrives."""

from __future__ import annotations

import abc

from obatchd.ollama import faults
from obatchd.ollama.connections import Broken, Connections, Unreachable
from obatchd.ollama.faults import Fault


class Whole:
    """The status and the body of an answer of ``url``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status = 0
        self._location = ""
        self._parts: list[bytes] = []

    def begin(self, status: int, location: str) -> None:
        self.status = status
        self._location = location

    def data(self, data: bytes) -> None:
        self._parts.append(data)

    @property
    def body(self) -> bytes:
        return b"".join(self._parts)

    def end(self) -> Fault | None:
        """There is no more; the fault of an error answer."""
        return None if self.status == 200 else faults.from_body(self.status, self.body, self.url, self._location)


class Lines(Whole, abc.ABC):
    """An answer in lines of JSON; the body of an error answer is kept as a whole."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._rest = b""  # the beginning of a line

    def data(self, data: bytes) -> None:
        if self.status != 200:
            super().data(data)
            return
        *lines, self._rest = (self._rest + data if self._rest else data).split(b"\n")
        for line in lines:
            if line:
                self.take(line)

    def end(self) -> Fault | None:
        if self._rest.strip():  # the last line may lack its end
            self.take(self._rest)
        return super().end()

    @abc.abstractmethod
    def take(self, line: bytes) -> None:
        """One more line."""


async def exchange(connections: Connections, path: str, body: bytes, answer: Whole) -> Fault | None:
    """Post ``body`` and read the answer; the fault when no whole answer with status 200 came."""
    try:
        await connections.request("POST", path, body, answer)
    except Unreachable as error:
        return faults.connection_refused(str(error))
    except Broken as error:
        return faults.connection_lost(str(error))
    return answer.end()
