"""Calls of NVML: errors by field, the newest call before the older one, and the trouble that an error means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
import pynvml

from obatchd.gpus.model import Trouble

T = TypeVar("T")
ABSENT = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
# The process lists raise the second, which is no NVMLError; a name that is no UTF-8, as under WSL, the third.
ERRORS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError, UnicodeDecodeError)
_OLD_CALL = frozenset({*ABSENT, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH, pynvml.NVML_ERROR_INVALID_ARGUMENT})
# An unknown field number is an invalid argument to an older driver.
_ABSENT_FIELD = frozenset({*ABSENT, pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NO_DATA})
_TROUBLES: dict[int, Trouble] = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "lost",
    pynvml.NVML_ERROR_GPU_NOT_FOUND: "lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "reset_required",
    pynvml.NVML_ERROR_IRQ_ISSUE: "irq",
    pynvml.NVML_ERROR_CORRUPTED_INFOROM: "inforom_corrupted",
}
_WORST: tuple[Trouble, ...] = ("", "inforom_corrupted", "irq", "unknown", "reset_required", "lost")
_VALUES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t of nvml.h
_NOT_AVAILABLE = frozenset({0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF})


@attrs.define(eq=False)
class Asking:
    """Asks one card for fields, and keeps the errors of each apart."""

    errors: dict[str, str] = attrs.field(factory=dict)
    trouble: Trouble = ""
    answers: int = 0

    def field(self, name: str, read: Callable[..., T], *given: Any) -> T | None:
        """What ``read`` answers to ``given``; None when card or driver do not tell, or after an entry in ``errors``."""
        try:
            value = read(*given)
        except ERRORS as error:
            self.failed(name, error)
            return None
        self.answers += 1
        return value

    def failed(self, name: str, error: Exception) -> None:
        """Note an error of one field. "Not supported" is none."""
        code = getattr(error, "value", 0)  # never compared as a whole: NVMLError's == fails on other types
        if code not in ABSENT:
            self._note(name, error, _TROUBLES.get(code, ""))

    def gone(self, error: Any) -> None:
        """The device itself is not found under its UUID, although it was there."""
        absent: Trouble = "lost" if error.value == pynvml.NVML_ERROR_NOT_FOUND else "unknown"
        self._note("handle", error, _TROUBLES.get(error.value, absent))

    def _note(self, name: str, error: Exception, trouble: Trouble) -> None:
        self.errors[name] = words(error)
        self.trouble = max(self.trouble, trouble, key=_WORST.index)


def newest(new: Callable[..., T], old: Callable[..., T], *given: Any) -> T:
    """What ``new`` answers to ``given``, or ``old`` where the driver does not know that call yet."""
    try:
        return new(*given)
    except pynvml.NVMLError as error:
        if error.value not in _OLD_CALL:
            raise
    return old(*given)


def field_values(handle: Any, numbers: Sequence[int], asking: Asking, prefix: str) -> dict[int, Any]:
    """Values by field number, in one call. A bad number fails for itself only; each has a return code of its own."""
    values = asking.field(prefix, pynvml.nvmlDeviceGetFieldValues, handle, list(numbers))
    found: dict[int, Any] = {}
    for number, entry in zip(numbers, values or (), strict=False):
        if entry.nvmlReturn == pynvml.NVML_SUCCESS:
            value = getattr(entry.value, _VALUES[entry.valueType]) if entry.valueType < len(_VALUES) else None
            if value is not None and value not in _NOT_AVAILABLE:
                found[number] = value
        elif entry.nvmlReturn not in _ABSENT_FIELD:
            asking.failed(f"{prefix}.{number}", pynvml.NVMLError(entry.nvmlReturn))
    return found


def or_none(read: Callable[..., T], *given: Any) -> T | None:
    """What ``read`` answers to ``given``, or None where it is not supported; other errors are raised."""
    try:
        return read(*given)
    except pynvml.NVMLError as error:
        if error.value not in ABSENT:
            raise
        return None


def text(value: str | bytes) -> str:
    """Some calls of the binding give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def words(error: Exception) -> str:
    return str(error) or type(error).__name__
