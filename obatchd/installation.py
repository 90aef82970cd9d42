"""The way in which this obatchd is installed, for advice that works here."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path

_PREFIX = Path("/opt/obatchd")  # of the deb, the rpm and scripts/install
_PACKAGE_MARK = Path("/usr/share/obatchd/package")  # says deb or rpm; scripts/install leaves none
_BY_PACKAGE = {
    "deb": "sudo apt install ./obatchd-parquet_*.deb",
    "rpm": "sudo dnf install ./obatchd-parquet-*.rpm",
}


def how_to_add(library: str) -> str:
    """The command that adds a library of PyPI to this installation; ``pyarrow`` has a package of its own.

    In the order of the checks: the deb or rpm, ``scripts/install``, pipx (its ``pipx_metadata.json``), a pip of the
    environment, uv (whose environments have no pip).
    """
    if _PREFIX in Path(sys.prefix).resolve().parents:
        mark = _PACKAGE_MARK.read_text().strip() if _PACKAGE_MARK.exists() else ""
        return _BY_PACKAGE.get(mark, "sudo scripts/install (in the source directory)")
    if Path(sys.prefix, "pipx_metadata.json").exists():
        return f"pipx inject {Path(sys.prefix).name} {library}"
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {sys.executable} {library}"
    # A Python of the distribution takes packages only from there, unless it is told to (PEP 668).
    of_system = sys.prefix == sys.base_prefix and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()
    return f"{sys.executable} -m pip install {'--break-system-packages ' if of_system else ''}{library}"


def lacks(library: str, needs: str) -> str:
    """What to tell a user where ``needs`` (a kind of file) cannot be had without ``library``."""
    command = how_to_add(library)
    who = "An administrator installs it with" if command.startswith("sudo ") else "To install it"
    return f"{needs} needs the library {library}, and that is not installed. {who}: {command}"
