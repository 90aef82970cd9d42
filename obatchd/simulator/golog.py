"""Log lines as Ollama writes them: Go's slog text on stderr, gin's access lines on stdout."""

from __future__ import annotations

import os
import time

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.,:/+[]()%@'\\µ")


def now_text() -> str:
    """The present in UTC as Go prints it in JSON, with nanoseconds."""
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanos:09d}Z"


def slog(level: str, source: str, message: str, **fields: object) -> None:
    """One line on stderr."""
    pairs = "".join(f" {key}={_value(str(value))}" for key, value in fields.items())
    stamp = now_text()[:23]
    _write(2, f'time={stamp}Z level={level} source={source} msg="{_escaped(message)}"{pairs}\n')


def access(status: int, took_s: float, client: str, method: str, path: str) -> None:
    """One line on stdout for an answered HTTP request."""
    stamp = time.strftime("%Y/%m/%d - %H:%M:%S")
    _write(1, f'[GIN] {stamp} | {status:3d} | {duration(took_s):>13} | {client:>15} | {method:<8} "{path}"\n')


def notice(text: str) -> None:
    """Plain words on stdout."""
    _write(1, text + "\n")


def duration(seconds: float) -> str:
    """Like Go's ``time.Duration``, for times below an hour."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.3f}µs"
    if seconds < 1:
        return f"{seconds * 1e3:.6f}ms"
    return f"{seconds:.9f}s" if seconds < 60 else f"{int(seconds // 60)}m{seconds % 60:.9f}s"


def _value(text: str) -> str:
    return text if text and all(char in _PLAIN for char in text) else f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _write(descriptor: int, line: str) -> None:
    # A Go program ends by SIGPIPE when its stderr is gone; Python ignores that signal and gets an error instead.
    try:
        os.write(descriptor, line.encode())
    except BrokenPipeError:
        os._exit(141)
