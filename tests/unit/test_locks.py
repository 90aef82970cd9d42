"""The locks of dependencies: whole, and installed as they are."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
INSTALLS = re.compile(r"pip install [^\n]*-r [^\n]*")


def locked(lock: str) -> dict[str, Requirement]:
    lines = (ROOT / lock).read_text().replace("\\\n", " ").splitlines()
    found = [Requirement(line.partition(" --hash")[0]) for line in lines if line and not line.startswith((" ", "#"))]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_has_all_that_its_packages_need(lock: str) -> None:
    """So it can be installed without a look at what packages ask for."""
    known = locked(lock)
    missing = []
    for name in known:
        try:
            needs = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:  # of another Python or system, or of an extra that is not installed here
            continue
        here = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        missing += [f"{name}: {need}" for need in here if canonicalize_name(need.name) not in known]
    assert known and not missing


@pytest.mark.parametrize("file", ["scripts/setup", "Containerfile"])
def test_a_lock_is_installed_without_a_look_at_extras(file: str) -> None:
    """pip warned that lxml does not provide the extra html_clean, which it has in another spelling."""
    commands = INSTALLS.findall((ROOT / file).read_text())
    assert commands and all("--no-deps" in command for command in commands)
