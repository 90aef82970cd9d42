"""What the packages hold and say, as far as it can be seen without installing one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_package_holds_every_page_that_the_readme_and_the_index_lead_to(tmp_path: Path) -> None:
    wheels, root = tmp_path / "wheels", tmp_path / "root"
    wheels.mkdir()
    (wheels / "obatchd-0-py3-none-any.whl").touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([ROOT / "scripts/package/stage", root, wheels, sys.executable], check=True, env=environment)
    held = root / "usr/share/doc/obatchd"
    lost = []
    for page in (held / "README.md", held / "docs/README.md"):
        for link in re.findall(r"\]\(([^)\s#]+)", page.read_text("utf-8")):
            if "://" not in link and not (page.parent / link).exists():
                lost.append((page.name, link))
    assert lost == []
    assert "/usr/share/doc/obatchd/README.md" in (root / "usr/share/man/man8/obatchd.8").read_text().replace("\\-", "-")


@pytest.mark.parametrize("enabled", [True, False])
def test_a_package_that_is_installed_again_says_that_it_is_not_enabled(tmp_path: Path, enabled: bool) -> None:
    """Before, not a word: dpkg knows an earlier version after a removal, too, which has disabled the unit."""
    script = tmp_path / "postinst"
    text = (ROOT / "scripts/package/postinst").read_text()
    script.write_text(text.replace("-d /run/systemd/system", "-n systemd"))
    said = postinst(tmp_path, script, ("configure", "0.1.0-1"), "obatchd", systemctl=f"exit {0 if enabled else 1}")
    assert ("is not started with this host:  sudo systemctl enable --now obatchd" in said) != enabled


@pytest.mark.parametrize("runs", ["obatchd-host.service", "obatchd.service"])
def test_an_upgrade_of_a_host_does_not_say_that_it_does_not_run(tmp_path: Path, runs: str) -> None:
    script = tmp_path / "postinst"
    text = (ROOT / "scripts/package/postinst").read_text()
    script.write_text(text.replace("-d /run/systemd/system", "-n systemd"))
    question = f"case $3 in {runs}) ;; *) exit 1 ;; esac"
    said = postinst(tmp_path, script, ("configure", "0.1.0-1"), "obatchd", systemctl=question)
    assert said.count("\n") == 1 and "runs under the new version" in said
    assert ("obatchd host" in said) == (runs == "obatchd-host.service")


@pytest.mark.parametrize(
    ("arguments", "package", "told"),
    [
        (("configure", ""), "obatchd", True),
        (("configure", "0.1.0-1"), "obatchd", False),
        (("configure", ""), "obatchd-parquet", False),
        (("1",), None, True),
        (("2",), None, False),
        ((), None, False),  # by scripts/install, which says it itself
    ],
)
def test_the_first_installation_ends_with_the_next_command(
    tmp_path: Path, arguments: tuple[str, ...], package: str | None, told: bool
) -> None:
    said = postinst(tmp_path, ROOT / "scripts/package/postinst", arguments, package)
    assert ("sudo systemctl enable --now obatchd" in said) == told


def test_the_rpm_of_parquet_does_not_say_that_obatchd_is_not_started(tmp_path: Path) -> None:
    """Its script is the same, and rpm does not tell a script whose it is."""
    _, _, of_rpm = (ROOT / "scripts/package/parquet.yaml").read_text().partition("\n  rpm:\n")
    assert "posttrans: ${WORK}/posttrans\n" in of_rpm
    lines = (ROOT / "scripts/build-package").read_text().splitlines()
    [made] = [line for line in lines if line.endswith('>"$work/posttrans"')]
    subprocess.run(["sh", "-c", made], check=True, cwd=ROOT, env={**os.environ, "work": str(tmp_path)})
    assert postinst(tmp_path, tmp_path / "posttrans", ("1",), None) == ""


def postinst(tmp_path: Path, script: Path, arguments: tuple[str, ...], package: str | None, systemctl: str = "") -> str:
    """What the script says on a host on which everything else goes well without a word."""
    for name in ("make-venv", "systemd-sysusers", "systemd-tmpfiles", "systemctl"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    if systemctl:  # of its questions; all else goes well
        program = f"#!/bin/sh\ncase $* in *is-*) {systemctl} ;; esac\n"
        (tmp_path / "systemctl").write_text(program)
    text = script.read_text().replace("/usr/lib/obatchd/", f"{tmp_path}/")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | (
        {"DPKG_MAINTSCRIPT_PACKAGE": package} if package else {}
    )
    done = subprocess.run(
        ["sh", "-c", text, "postinst", *arguments], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stderr == ""
    return done.stdout
