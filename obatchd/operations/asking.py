"""Questions of programs that wait for the answer, to the desk of interactive requests."""

from __future__ import annotations

from types import TracebackType

from attrs import define

from obatchd.control.auth import Caller
from obatchd.control.programs import Piece
from obatchd.dispatch.interactive.desk import Desk
from obatchd.dispatch.interactive.lease import Lease, Question
from obatchd.errors import ApiError, InteractiveError

# By code of a failure; what is not here is a fault of ours or of a server.
_STATUS = {
    "model_not_found": 404, "model_forbidden": 403, "queue_full": 429, "stopping": 503, "draining": 503, "paused": 503,
    "no_server": 503, "unreachable": 503, "server_busy": 503, "timeout": 504,
}  # fmt: skip
_BAD = {
    "model", "bad_json", "wrong_type", "not_supported", "missing_prompt", "context_exceeded", "invalid_format",
    "invalid_option", "bad_request", "unsupported_parameter", "invalid_request", "invalid_json_line",
    "missing_required_parameter", "url_mismatch", "bad_image",
}  # fmt: skip


@define(eq=False)
class Asked:
    """Implements :class:`obatchd.control.programs.Awaited`."""

    _lease: Lease

    def __aiter__(self) -> Asked:
        return self

    async def __anext__(self) -> Piece:
        delta = await anext(self._lease)
        return Piece(delta.text, delta.think, delta.calls)

    async def result(self) -> bytes:
        ended = await self._lease.result()
        if not ended.succeeded:
            raise _refusal(ended.code, ended.message, final=not ended.again)
        return ended.record

    async def __aenter__(self) -> Asked:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lease.close()


@define(eq=False)
class Questions:
    """Implements :class:`obatchd.control.programs.Asking`, which says what each method does."""

    _desk: Desk

    def ask(self, caller: Caller, raw: bytes, *, stream: bool) -> Asked:
        try:
            return Asked(self._desk.ask(Question(raw, stream=stream), caller.uid))
        except InteractiveError as error:
            raise _refusal(error.code, error.message, final=error.retry_after_s is None) from None


def _refusal(code: str, message: str, *, final: bool) -> ApiError:
    status = _STATUS.get(code, 400 if code in _BAD else 500)
    return ApiError(message, status=status, code=code, final=final)
