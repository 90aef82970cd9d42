"""An owner of tasks that remembers which of them failed."""

from __future__ import annotations

from obatchd.tasks import TaskSet


class Failures(list[str]):
    """Implements :class:`obatchd.tasks.TaskOwner`."""

    def task_failed(self, name: str, error: BaseException) -> None:
        self.append(f"{name}: {type(error).__name__}: {error}")


def tasks_of(failures: Failures) -> TaskSet:
    return TaskSet(failures)
