"""Structured key=value lines on stderr, one event per line, friendly to the journal."""

from __future__ import annotations

import logging
import os
import sys
import time

_QUOTE = frozenset(' "=\\')
_JOURNAL = "JOURNAL_STREAM" in os.environ  # systemd.exec(5): stderr is the journal, which stamps the time itself
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


def field(value: object) -> str:
    """One value as it stands in a log line: quoted only where it must be, never with a line break."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if text and not any(c in _QUOTE or not c.isprintable() for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped) + '"'


class EventLogger:
    """Writes events: a name and its fields."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def _write(self, level: int, event: str, fields: dict[str, object], *, error: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            pairs = (f"{key}={field(value)}" for key, value in fields.items())
            self._logger.log(level, "%s", " ".join([f"event={field(event)}", *pairs]), exc_info=error)

    def debug(self, event: str, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, error: BaseException | None = None, **fields: object) -> None:
        """An error with the traceback of ``error``, or of the exception being handled."""
        self._write(logging.ERROR, event, fields, error=error or sys.exc_info()[1])


class _Formatter(logging.Formatter):
    """``time=… level=… logger=… event=… key=value``; under systemd the journal's own priority prefix."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += " trace=" + field(self.formatException(record.exc_info))
        if not message.startswith("event="):
            message = "event=message text=" + field(message)
        origin = f"level={record.levelname.lower()} logger={record.name.removeprefix('obatchd.')}"
        if _JOURNAL:
            return f"<{_PRIORITY.get(record.levelname, 6)}>{origin} {message}"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"time={stamp}.{int(record.msecs):03d}Z {origin} {message}"


def get(name: str) -> EventLogger:
    """The event logger of a module; pass ``__name__``."""
    return EventLogger(logging.getLogger(name))


def reason(error: BaseException) -> str:
    """An error in words that name no file: drops are named by users, and the journal is read by others."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} (errno {error.errno})"
    return str(error)


def configure(level: str) -> None:
    """Send every event of at least ``level`` (``debug``, ``info``, ``warning`` or ``error``) to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("obatchd").setLevel(level.upper())
