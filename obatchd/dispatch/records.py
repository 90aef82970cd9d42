"""The record of an attempt: made by its worker with the answer, by the main process when it gives the request up."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from obatchd.dispatch.protocol import Configure, OfferItem
from obatchd.jobs.formats.request import Request, request_id
from obatchd.jobs.model import Outcome, id_at, place_of
from obatchd.ollama.client import Answer
from obatchd.ollama.faults import Fault
from obatchd.words import counted

_encode = msgspec.json.Encoder().encode
# Fields of a record that no prompt, answer or source makes long.
_SHORT = (
    "id", "line", "repeat", "model", "server", "slots", "gpu", "attempts", "servers", "started_at", "finished_at",
    "duration_s", "prompt_tokens", "response_tokens", "tokens_per_s", "done_reason", "truncated",
)  # fmt: skip
Found = tuple[Answer, dict[str, Any]]  # with more fields for the record: parsed data, notes


def attempt(
    server: Configure, model: str, item: OfferItem, request: Request, found: Found, started_s: float, duration_s: float
) -> bytes:
    """The record of an attempt that ended, well or not, at the worker; it began at ``started_s`` (epoch)."""
    answer, extra = found
    record: dict[str, Any] = {
        "id": id_at(item.line, request.id),
        **place_of(item.line),
        "outcome": Outcome.FAILED if answer.fault else Outcome.SUCCEEDED,
    }
    if answer.fault:
        record |= {"code": answer.fault.code, "message": answer.fault.message}
    record["prompt"] = request.prompt
    if request.embed is None:
        record["response"] = answer.text
    if request.url:
        record["url"] = request.url
    if answer.think:
        record["think"] = answer.think
    record |= extra
    record |= {
        "model": model,
        "server": server.server,
        "slots": server.slots,
        "gpu": server.gpu,
        "attempts": item.attempt,
        "servers": [*item.servers, server.server],
        "started_at": _instant(started_s),
        "finished_at": _instant(started_s + duration_s),
        "duration_s": round(duration_s, 6),
        "prompt_tokens": answer.prompt_tokens,
        "response_tokens": answer.response_tokens,
        "tokens_per_s": round(answer.response_tokens / answer.eval_s, 3) if answer.eval_s else None,
        "done_reason": answer.done_reason,
        "truncated": answer.done_reason == "length",
    }
    if request.input:
        record["input"] = request.input
    return _encode(record)


def lost(raw: bytes, line: int, number: int, servers: list[str], fault: Fault) -> bytes:
    """The record of attempt ``number``, whose worker ended with it; its server is the last of ``servers``."""
    return _encode(
        {
            "id": id_at(line, request_id(raw)),
            **place_of(line),
            "outcome": Outcome.FAILED,
            "code": fault.code,
            "message": fault.message,
            "attempts": number,
            "servers": servers,
        }
    )


def without_answer(record: bytes, fault: Fault) -> bytes:
    """The failure of a request whose answer cannot be kept: of its record only what is short."""
    document = msgspec.json.decode(record)
    kept = {name: document[name] for name in _SHORT if name in document}
    return _encode(kept | {"outcome": Outcome.FAILED, "code": fault.code, "message": fault.message})


def poisoned(record: bytes, crashes: int, alone: int) -> bytes:
    """The failure of a request that crashes or hangs servers, with the evidence."""
    of_these = f"{alone} of these" if alone < crashes else "each time"
    words = (
        f"servers crashed or hung {counted(crashes, 'time')} while they worked on the request, {of_these} while they "
        "worked on nothing else"
    )
    return _reworded(record, "poison", words)


def crashed_again(record: bytes, crashes: int) -> bytes:
    """The failure of an interactive request that crashes servers."""
    words = (
        f"servers crashed or hung {counted(crashes, 'time')} while they worked on the request; it is refused for ten "
        "minutes"
    )
    return _reworded(record, "poison", words)


def singled_out(record: bytes, times: int) -> bytes:
    """The failure of a request that something in front of the servers turns away, with the evidence."""
    words = f"servers turned the request away {counted(times, 'time')}, while they answered others"
    return _reworded(record, msgspec.json.decode(record)["code"], words)


def out_of_time(record: bytes, spent_s: float) -> bytes:
    """The failure of a request that took too long over all its attempts."""
    return _reworded(record, "timeout", f"the attempts took {spent_s:.0f} s in all, more than dispatch.request_total_s")


def _reworded(record: bytes, code: str, message: str) -> bytes:
    document = msgspec.json.decode(record)
    last = f"; the last one, on {document['servers'][-1]}: {document.get('message', '')}"
    return _encode(document | {"code": code, "message": message + last})


def _instant(at_s: float) -> str:
    second, milliseconds = divmod(round(at_s * 1000), 1000)
    return f"{_second(second)}.{milliseconds:03d}Z"


@lru_cache(maxsize=4)
def _second(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
