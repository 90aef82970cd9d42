"""``scripts/install`` from a source directory, on a host that once had the package."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from system import CONFIG, SPOOL, System, no_trace, program_gone, step

HERE = Path(__file__).resolve().parents[2]
_SOURCE = ("bench", "docs", "etc", "scripts", "spool", "systemd", "README.md", "CHANGELOG.md", "CONTRIBUTING.md",
           "LICENSE")  # fmt: skip
_INSTALL = "/root/source/scripts/install"


@step
def source_installation(s: System) -> None:
    c = s.c
    for name in _SOURCE:
        target = c.root / "root/source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (HERE / name).is_dir() else shutil.copy)(HERE / name, target)
    c.run("dpkg -i /root/obatchd.deb")
    for action in ("", " --uninstall", " --purge"):
        s.refused(_INSTALL + action, "root", "installed as a package here")
    c.put("/etc/obatch/obatchd.toml", CONFIG + "# mine\n")
    c.run("dpkg -r obatchd")

    wheels = c.root / "root/wheels"
    _, package = s.package("deb", 0)
    subprocess.run(["dpkg-deb", "-x", package, c.root / "root/unpacked"], check=True)
    shutil.move(c.root / "root/unpacked/usr/share/obatchd/wheels", wheels)
    install = f"{_INSTALL} --wheels=/root/wheels"
    c.run(install)
    state = [c.out(f"systemctl {what} obatchd", check=False) for what in ("is-enabled", "is-active")]
    assert state == ["disabled", "inactive"], state
    assert "# mine" in c.out("cat /etc/obatch/obatchd.toml")
    s.say("scripts/install after dpkg -r, without network", f"{', '.join(state)}; configuration kept")

    c.run("systemctl start obatchd")
    s.ready()
    s.drop("alice", "source.jsonl", 30)
    s.under_way("alice", "source", 5)
    venvs = c.out("ls -di /opt/obatchd/*-*")
    c.run(install)
    assert c.out("ls -di /opt/obatchd/*-*") == venvs
    s.finished("alice", "source", 30)
    s.say("scripts/install again in mid-job", "30 of 30, each once; the venv was not touched")

    c.run(f"{_INSTALL} --uninstall")
    program_gone(s, f"/etc/obatch/obatchd.toml {SPOOL}/work/state.db /var/lib/obatch")
    c.run(f"{_INSTALL} --purge && dpkg -P obatchd")  # what dpkg remembers of the removed package goes, too
    no_trace(s)
    s.say("scripts/install --uninstall, then --purge", "first the program is gone, then all of it")
