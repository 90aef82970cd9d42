from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from obatchd import installation

Place = Callable[[str], Path]


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Makes a directory of an installation of Python, and has this one be it."""

    def place(name: str) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        monkeypatch.setattr(sys, "prefix", str(path))
        return path

    monkeypatch.setattr(installation, "_PREFIX", tmp_path / "opt")
    monkeypatch.setattr(installation, "_PACKAGE_MARK", tmp_path / "package")
    return place


@pytest.mark.parametrize(
    ("mark", "command"),
    [
        ("deb\n", "sudo apt install ./obatchd-parquet_*.deb"),
        ("rpm\n", "sudo dnf install ./obatchd-parquet-*.rpm"),
        (None, "sudo scripts/install (in the source directory)"),
    ],
)
def test_a_system_service_gets_a_library_in_the_way_in_which_it_came(
    prefix: Place, tmp_path: Path, mark: str | None, command: str
) -> None:
    prefix("opt/0.1.0-abc")
    if mark:
        (tmp_path / "package").write_text(mark)
    assert installation.how_to_add("pyarrow") == command
    words = (
        f"Parquet needs the library pyarrow, and that is not installed. An administrator installs it with: {command}"
    )
    assert installation.lacks("pyarrow", "Parquet") == words


def test_an_environment_of_pipx_is_named(prefix: Place) -> None:
    (prefix("pipx/venvs/obatchd-next") / "pipx_metadata.json").touch()
    assert installation.how_to_add("pyarrow") == "pipx inject obatchd-next pyarrow"


def test_a_pip_is_used_where_there_is_one(prefix: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = prefix("venv")
    assert installation.how_to_add("pyarrow") == f"{sys.executable} -m pip install pyarrow"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert installation.how_to_add("pyarrow") == f"uv pip install --python {sys.executable} pyarrow"
    monkeypatch.undo()
    monkeypatch.setattr(sys, "prefix", str(venv))
    monkeypatch.setattr(sys, "base_prefix", str(venv))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(venv))
    (venv / "EXTERNALLY-MANAGED").touch()
    words = f"{sys.executable} -m pip install --break-system-packages pyarrow"
    assert installation.how_to_add("pyarrow") == words
