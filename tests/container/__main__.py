"""``scripts/test-system``: build two versions of the packages, boot a Debian, go through the steps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import admin
import drills
import rpm_package
import source
import users
from container import Container
from system import STEPS, System

import obatchd

HERE = Path(__file__).resolve().parents[2]
_SOURCES = ("obatchd", "bench", "docs", "etc", "scripts", "spool", "systemd")
_SOURCE_FILES = (
    "pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "requirements.lock",
    "requirements-dev.lock",
)  # fmt: skip
_NEXT_SCHEMA = """

_schema_before = state_schema


def state_schema(defaults: FrozenSettings) -> Schema:
    schema, later = _schema_before(defaults), "CREATE TABLE later (x);"
    return Schema(schema.version + 1, schema.create + later, {**schema.steps, schema.version + 1: later})
"""


def build(source: Path, out: Path) -> None:
    """Make the packages of a source directory, for the Python of Debian 12 alone."""
    environment = {**os.environ, "OBATCHD_BUILD_PYTHON": sys.executable}
    subprocess.run([source / "scripts/build-package", "--python", "3.11", out], check=True, env=environment)


def newer_source(target: Path) -> Path:
    """A copy of this source as the next version would be, with other tables in its store."""
    for name in _SOURCES:
        shutil.copytree(HERE / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _SOURCE_FILES:
        shutil.copy(HERE / name, target / name)
    major, minor, _ = obatchd.__version__.split(".")
    path = target / "obatchd/__init__.py"
    path.write_text(path.read_text().replace(f'"{obatchd.__version__}"', f'"{major}.{int(minor) + 1}.0"'))
    with open(target / "obatchd/jobs/store/state_tables.py", "a") as state:
        state.write(_NEXT_SCHEMA)
    return target


def main(base: Path, wanted: list[str]) -> int:
    """Run all steps, or those named (the first two come always); returns the exit code."""
    steps = {
        name: run
        for module in (users, drills, source, rpm_package, admin)
        for name, run in STEPS.items()
        if run.__module__ == module.__name__
    }
    names = [name for name in wanted if not name.startswith("--")]
    given = next((Path(name.partition("=")[2]) for name in wanted if name.startswith("--packages=")), None)
    if unknown := set(names) - set(steps):
        print(f"no such step: {', '.join(unknown)}; there are: {', '.join(steps)}", file=sys.stderr)
        return 2
    work = Path(tempfile.mkdtemp(prefix="obatch-system-"))
    packages = given or work / "packages"
    began_s = time.monotonic()
    if given is None:
        print("== building the packages", flush=True)
        build(HERE, packages)
        build(newer_source(work / "newer"), packages)
        print(f"== packages: {time.monotonic() - began_s:.0f} s", flush=True)
    container = Container(base, work)
    failed = []
    try:
        container.boot()
        system = System(container, packages)
        for name, step in steps.items():
            if names and name not in (*list(steps)[:2], *names):
                continue
            print(f"== {name}", flush=True)
            begun_s = time.monotonic()
            try:
                step(system)
            except Exception:  # noqa: BLE001 - the other steps still tell something; the traceback is shown
                traceback.print_exc()
                print(system.c.out("journalctl -u obatchd -n 25 --no-pager -o cat", check=False), flush=True)
                failed.append(name)
            print(f"   {time.monotonic() - begun_s:.1f} s", flush=True)
            if name in list(steps)[:2] and failed:
                break  # nothing to go on with
    finally:
        container.close()
        if "--keep" not in wanted:
            shutil.rmtree(work, ignore_errors=True)
    print(f"== all: {time.monotonic() - began_s:.0f} s; " + (f"FAILED: {', '.join(failed)}" if failed else "good"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
