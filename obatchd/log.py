"""Events on stderr: lines of key=value for the journal and pipes, words for a person at a terminal.

The words are in :mod:`obatchd.spoken`.
"""

from __future__ import annotations

import logging
import os
import sys
import time

_QUOTE = frozenset(' "=\\')
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
            text = " ".join([f"event={field(event)}", *pairs])
            self._logger.log(level, "%s", text, exc_info=error, extra={"event": event, "fields": fields})

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

    def __init__(self) -> None:
        super().__init__()
        self._journal = _is_journal()

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += " trace=" + field(self.formatException(record.exc_info))
        if not message.startswith("event="):
            message = "event=message text=" + field(message)
        origin = f"level={record.levelname.lower()} logger={record.name.removeprefix('obatchd.')}"
        if self._journal:
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


def _is_journal() -> bool:
    """Whether stderr is the journal, which stamps the time itself; a terminal's shell only inherits the variable."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"  # systemd.exec(5)


def configure(level: str) -> None:
    """Send every event of at least ``level`` (``debug``, ``info``, ``warning`` or ``error``) to stderr.

    In a terminal a person reads them in words, but for ``debug``, which has all fields.
    """
    if sys.stderr.isatty() and level != "debug":  # who looks for a defect wants every field
        from obatchd.spoken import Handler

        handler: logging.Handler = Handler(sys.stderr)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("obatchd").setLevel(level.upper())
