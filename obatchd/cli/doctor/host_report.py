"""``python -m obatchd.cli.doctor.host_report``: the checks of doctor on a machine that works for a head, a line of
JSON for each.

``obatchd host`` starts it for the head, with what it has to know on standard input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from obatchd.cli.doctor import host_checks, spool_checks, store_checks
from obatchd.cli.doctor.result import CheckResult, ok, warn
from obatchd.cluster.host.desks.doctor import Asked
from obatchd.settings.settings import Settings


def main() -> None:
    """Print the findings, each with the fields of :class:`obatchd.documents.hosts.Finding`."""
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)
    settings = Settings.model_validate(asked.settings)
    for result in examine(settings, Path(asked.directory), asked.urls):
        print(json.dumps(result._asdict()), flush=True)  # at once: the next one may hang


def examine(settings: Settings, directory: Path, urls: list[str]) -> Iterator[CheckResult]:
    """Every check; ``urls`` are those of the host's servers."""
    yield host_checks.driver(settings)
    yield host_checks.ollama(settings)
    yield from store_checks.model_store(settings, directory, directory / "models")
    yield host_checks.ports(settings, {"servers": [{"kind": "managed", "url": url} for url in urls]})
    yield host_checks.foreign_ollama()
    yield host_checks.clock()
    yield _disk(directory, settings)


def _disk(directory: Path, settings: Settings) -> CheckResult:
    text, low, look = spool_checks.room(directory, settings)
    return warn("disk", f"{text}: too little for logs and what is kept of GPUs", look) if low else ok("disk", text)


if __name__ == "__main__":
    main()
