"""Every error obatchd raises on purpose: one tree, whose root has the common parts."""

from __future__ import annotations


class ObatchError(Exception):
    """Root of the tree.

    Args:
        message: what is wrong, where, and what to do, in plain words.
        code: slug used in JSON output, logs and result files; it overrides the class's own.
    """

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    @property
    def message(self) -> str:
        return str(self.args[0])


class ConfigError(ObatchError):
    """Settings that cannot be used; the daemon exits with 78."""

    code = "config"


class SpoolError(ObatchError):
    """The spool cannot be used: missing, wrong filesystem, locked, full."""

    code = "spool"


class DropRefused(SpoolError):
    """One drop cannot become a job; it goes to ``failed/``."""

    code = "drop_refused"


class StoreError(ObatchError):
    """A store file is unreadable or inconsistent."""

    code = "store"


class ServerError(ObatchError):
    """An Ollama server cannot be started, reached or used."""

    code = "server"


class ModelError(ServerError):
    """A model is missing, forbidden, or cannot be pulled or loaded."""

    code = "model"


class GpuError(ObatchError):
    """NVML or a GPU cannot be used."""

    code = "gpu"


class SourceError(ObatchError):
    """A source that a request names cannot be fetched or read."""

    code = "source"


class ResultsError(ObatchError):
    """Results cannot be read or exported."""

    code = "results"


class ControlError(ObatchError):
    """A control request cannot be carried out."""

    code = "control"


class NotFoundError(ControlError):
    """No such job, server or model."""

    code = "not_found"


class ForbiddenError(ControlError):
    """The caller may not do this."""

    code = "forbidden"


class DaemonDownError(ControlError):
    """No daemon answers on this spool."""

    code = "daemon_down"
