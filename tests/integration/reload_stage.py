"""What the table of :mod:`test_reload_every_key` is made of: effects of settings on a daemon, seen from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from daemon_support import Daemon, Document, Job


def nested(settings: Mapping[str, Any]) -> Document:
    """Dotted keys as tables."""
    tables: Document = {}
    for key, value in settings.items():
        section, dot, name = key.rpartition(".")
        (tables.setdefault(section, {}) if dot else tables)[name] = value
    return tables


class Stage:
    """A running daemon, its settings by dotted key, and what else a scene needs, until ``around`` ends."""

    def __init__(self, daemon: Daemon, settings: Document, around: ExitStack) -> None:
        self.d = daemon
        self.around = around
        self.extra: dict[str, Any] = {}
        self._settings = dict(settings)
        self._count = 0

    def reload(self, changes: Document) -> Document:
        """Change the file, and let the daemon read it again; its answer."""
        return self.put(self.settings | changes)

    def put(self, settings: Document) -> Document:
        """Replace the file, and let the daemon read it again; its answer."""
        self._settings = settings
        self.d.configure(nested(settings))
        answer: Document = self.d.client.post("reload")
        return answer

    def see(self, key: str, effect: Effect) -> None:
        """Show that the effect comes with a reload of this setting alone, and put everything back."""
        usual = self.settings
        self.reload({key: effect.old} | effect.beside)
        seen = effect.look(self)
        assert seen == effect.seen[0], f"{key} = {effect.old}: {seen}"
        answer = self.reload({key: effect.new})
        assert (answer["changed"], answer["next_job"], answer["needs_restart"]) == ([key], [], [])
        seen = effect.look(self)
        assert seen == effect.seen[1], f"{key} = {effect.new}, reloaded: {seen}"
        self.put(usual)

    @property
    def settings(self) -> Document:
        """Those in the file."""
        return dict(self._settings)

    def name(self, ending: str = ".jsonl") -> str:
        """Of a drop that there was not yet."""
        self._count += 1
        return f"drop{self._count}{ending}"

    def run(self, *requests: Document, content: bytes | Mapping[str, bytes] | None = None, ending: str = "") -> Job:
        """The job of a drop, done."""
        name = self.name(ending or ("" if isinstance(content, Mapping) else ".jsonl"))
        self.d.drop(name, list(requests) if content is None else content)
        return self.d.done(name)

    def codes(self, *requests: Document) -> dict[str, int]:
        """The errors of a drop, by code."""
        return dict(self.run(*requests).codes())

    def fate(self, content: bytes | list[Document], ending: str = ".jsonl") -> str:
        """What becomes of a drop: done or refused."""
        name = self.name(ending)
        stem = name.partition(".")[0]
        self.d.drop(name, content)
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            if any(self.d.outbox.glob(f"{stem}.*/summary.json")):
                return "done"
            if any((self.d.spool / "failed").rglob(f"{stem}.*")):
                return "refused"
            time.sleep(0.01)
        raise AssertionError(f"nothing became of {name}")


def becomes(condition: Callable[[], object], timeout_s: float = 0.8) -> bool:
    """Whether something comes true within so long."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := bool(condition())) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return found


@dataclass
class Effect:
    """A setting before and after a reload, and what is seen with each.

    Args:
        look: what is seen; called with both.
        seen: what that is.
        beside: other settings that it takes to see it.
    """

    old: Any
    new: Any
    look: Callable[[Stage], Any]
    seen: tuple[Any, Any]
    beside: Document = field(default_factory=dict)


@dataclass
class Scene:
    """Effects that are looked at with one daemon.

    Args:
        prepare: called when the daemon runs.
    """

    effects: dict[str, Effect]
    settings: Document = field(default_factory=dict)
    simulator: Document = field(default_factory=dict)
    prepare: Callable[[Stage], None] = lambda stage: None
