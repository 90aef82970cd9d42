"""Tasks without which the daemon would only seem to work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from obatchd import log
from obatchd.jobs.store.database import is_corrupt

_log = log.get(__name__)


class Vital:
    """Starts tasks that must not end by an exception; ``on_defect`` is told when one does.

    What is committed survives a restart, so ending the daemon is safer than going on without one of its parts.
    """

    def __init__(self, on_defect: Callable[[str], None], on_damage: Callable[[], None]) -> None:
        """``on_damage`` is told, before ``on_defect``, when the reason is a damaged file of the store."""
        self._on_defect = on_defect
        self._on_damage = on_damage

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` as the task ``name``."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if is_corrupt(error):
            remedy = "the daemon ends; its next start sets the file aside and does again what it held"
            _log.error("store_damaged", task=task.get_name(), reason=str(error), remedy=remedy)
            self._on_damage()
        else:
            self._log_defect(task, error)
        self._on_defect(f"{task.get_name()}: {type(error).__name__}: {error}")

    @staticmethod
    def _log_defect(task: asyncio.Task[None], error: BaseException) -> None:
        try:
            raise error
        except BaseException:  # noqa: BLE001 - logged with its traceback; the daemon ends because of it
            _log.exception("defect", task=task.get_name())
