"""Failures of whole answers that came when the status was out already, because of a sign of life.

The client sees a connection that broke, and many ask again then by themselves. Their second call is told at once what
the first one could not be, with its status, instead of doing all the work once more for the same end.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from aiohttp import web
from attrs import define, field

from obatchd.errors import ApiError
from obatchd.front.answers import apart
from obatchd.front.routes import CALLER

_KEPT_S = 60.0  # clients ask again within 8 s
_MOST = 1000
_TRY = "x-stainless-retry-count"  # of OpenAI's newer clients: 0 is no second call


@define(eq=False)
class LateFailures:
    """Those of the last minute. Nothing of a question is kept but its SHA-256."""

    _clock: Callable[[], float] = time.monotonic
    _kept: dict[bytes, tuple[float, ApiError]] = field(factory=dict, init=False)

    async def tell(self, request: web.Request, raw: bytes) -> None:
        """Raise the failure of the same question of the same user, once, where this may be its second call."""
        if self._kept and request.headers.get(_TRY) != "0":
            found = self._kept.pop(await apart(_digest, raw, request[CALLER].uid), None)
            if found is not None and self._clock() - found[0] < _KEPT_S:
                raise found[1]

    async def keep(self, request: web.Request, raw: bytes, error: ApiError) -> None:
        """Remember a failure which another try cannot better."""
        if error.final:
            while len(self._kept) >= _MOST:
                del self._kept[next(iter(self._kept))]
            again = ApiError(error.message, status=error.status, code=error.code, param=error.param)
            self._kept[await apart(_digest, raw, request[CALLER].uid)] = self._clock(), again


def _digest(raw: bytes, uid: int) -> bytes:
    return hashlib.sha256(b"%d\0" % uid + raw).digest()
