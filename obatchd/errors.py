"""Every error obatchd raises on purpose: one tree, whose root has the common parts."""

from __future__ import annotations


class ObatchError(Exception):
    """Root of the tree. The message says what is wrong, where, and what to do, in plain words.

    The code is the slug in JSON output, logs and result files; one that is given overrides the class's own.
    """

    code = "error"

    def __init_subclass__(cls, *, code: str) -> None:
        cls.code = code

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    @property
    def message(self) -> str:
        return str(self.args[0])


class ConfigError(ObatchError, code="config"):
    """Settings that cannot be used; the daemon exits with 78."""


class HostError(ObatchError, code="host"):
    """This machine, or a limit that it sets, does not let the daemon run."""


class SpoolError(ObatchError, code="spool"):
    """The spool cannot be used: missing, wrong filesystem, locked, full."""


class DropRefused(SpoolError, code="drop_refused"):
    """One drop cannot become a job; it goes to ``failed/``."""


class StoreError(ObatchError, code="store"):
    """A store file is unreadable or inconsistent."""


class ServerError(ObatchError, code="server"):
    """An Ollama server cannot be started, reached or used."""


class ModelError(ServerError, code="model"):
    """A model is missing, forbidden, or cannot be pulled or loaded."""


class InteractiveError(ObatchError, code="interactive"):
    """An interactive request is not taken. ``retry_after_s`` says when it may be; None: not as it is."""

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class ClusterError(ObatchError, code="cluster"):
    """A session between head and host cannot begin, or ended; or a host cannot join."""


class GpuError(ObatchError, code="gpu"):
    """NVML or a GPU cannot be used."""


class DeviceError(GpuError, code="device"):
    """The device under a stress load cannot go on; the codes are those of ``burnin.stress.protocol.Trouble``."""

    @property
    def is_final(self) -> bool:
        """Whether the process cannot use the device any more."""
        return self.code not in ("out_of_memory", "no_precision")


class SourceError(ObatchError, code="source"):
    """A source that a request names cannot be fetched or read."""


class ResultsError(ObatchError, code="results"):
    """Results cannot be read or exported."""


class NotToldError(ObatchError, code="not_told"):
    """A message did not reach whom it was for."""


class ControlError(ObatchError, code="control"):
    """A control request cannot be carried out."""


class ApiError(ControlError, code="invalid_value"):
    """A call over HTTP that is refused in the way of OpenAI's API.

    ``param`` is the field that is wrong. ``final``: the same call cannot do better later, so no client is to try again.
    ``retry_after_s``: when it may do better, where somebody knows.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        final: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.param = param
        self.final = final
        self.retry_after_s = retry_after_s


class NotFoundError(ControlError, code="not_found"):
    """No such job, server or model."""


class NotOverError(ControlError, code="not_over"):
    """A job is still in work."""


class ForbiddenError(ControlError, code="forbidden"):
    """The caller may not do this."""


class DaemonDownError(ControlError, code="daemon_down"):
    """No daemon answers on this spool."""
