"""Questions of programs that wait for the answer, to the desk of interactive requests."""

from __future__ import annotations

import asyncio

from attrs import define

from obatchd.control.auth import Caller
from obatchd.control.programs import Piece
from obatchd.dispatch.interactive.desk import Desk, read_question
from obatchd.dispatch.interactive.lease import Lease, Question
from obatchd.errors import ApiError, InteractiveError
from obatchd.spool.batch_lines import answer_body, api_code, api_status

_TOO_LONG = 504
_LARGE_BYTES = 256 * 1024
# By code of a failure, beside the statuses that lines of batches have.
_STATUS = {
    "model_not_found": 404, "model_forbidden": 403, "queue_full": 429, "stopping": 503, "draining": 503, "paused": 503,
    "no_server": 503, "unreachable": 503, "server_busy": 503,
}  # fmt: skip
_BAD = {
    "model", "bad_json", "wrong_type", "not_supported", "missing_prompt", "context_exceeded", "invalid_format",
    "invalid_option", "bad_request", "unsupported_parameter", "invalid_request", "invalid_json_line",
    "missing_required_parameter", "url_mismatch", "bad_image", "invalid_utf8",
}  # fmt: skip


@define(eq=False)
class Asked:
    """Implements :class:`obatchd.control.programs.Awaited`."""

    _lease: Lease

    async def wait(self, limit_s: float) -> bool:
        return await self._lease.wait(limit_s)

    def fresh(self) -> Piece | None:
        delta = self._lease.fresh()
        return None if delta is None else Piece(delta.text, delta.think, delta.calls)

    def close(self) -> None:
        self._lease.close()

    async def result(self) -> bytes:
        ended = await self._lease.result()
        if not ended.succeeded:
            raise _refusal(ended.code, ended.message, final=not ended.again, retry_after_s=ended.retry_after_s)
        return ended.record

    async def body(self, key: str, model: str) -> bytes:
        record = await self.result()
        if len(record) < _LARGE_BYTES:
            return answer_body(key, record, model)
        return await asyncio.to_thread(answer_body, key, record, model)  # many vectors, and others wait


@define(eq=False)
class Questions:
    """Implements :class:`obatchd.control.programs.Asking`, which says what each method does."""

    _desk: Desk

    async def ask(self, caller: Caller, raw: bytes, *, stream: bool) -> Asked:
        try:
            # Others do not wait while a large one is read.
            read = await asyncio.to_thread(read_question, raw) if len(raw) >= _LARGE_BYTES else None
            return Asked(self._desk.ask(Question(raw, stream=stream, read=read), caller.uid))
        except InteractiveError as error:
            after_s = error.retry_after_s
            raise _refusal(error.code, error.message, final=after_s is None, retry_after_s=after_s) from None


def _refusal(code: str, message: str, *, final: bool, retry_after_s: float | None) -> ApiError:
    status = _STATUS.get(code, 400 if code in _BAD else api_status(code))
    final = final or status == _TOO_LONG  # another try would take as long, and each takes a slot
    return ApiError(message, status=status, code=api_code(code), final=final, retry_after_s=retry_after_s)
