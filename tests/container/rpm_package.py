"""The rpm, in a root whose packages are rpm's: installed with dnf, started, upgraded in mid-job, removed.

The root is still the Debian of the other steps, because no RPM distribution is asked for packages here. What that
Debian has of the package's requirements is told to rpm by a package of its own, with the names of RHEL 9, so that dnf
resolves them.
"""

from __future__ import annotations

from container import wait_for
from system import CONFIG, SPOOL, System, no_trace, program_gone, step

_HOST = """\
Name: host
Version: {version}
Release: 1
Summary: What this Debian has, in the words of rpm
License: none
BuildArch: noarch
Provides: python3 = 3.9.21
{newer}
Provides: systemd = {systemd}
%description
%files
"""
_DNF = "dnf -q -y --releasever=12"


@step
def rpm_package(s: System) -> None:
    c = s.c
    c.run("dpkg -P obatchd 2>/dev/null; rm -rf /etc/obatch", check=False)
    for name, number in (("older", 0), ("newer", -1)):
        c.put(f"/root/{name}.rpm", s.package("rpm", number)[1].read_bytes())
    (old, _), (new, _) = s.package("rpm", 0), s.package("rpm", -1)
    python = c.out("python3 -c 'import platform; print(platform.python_version())'")
    systemd = c.out("systemctl --version | head -n 1 | cut -d ' ' -f 2")
    for version, newer in ((1, ""), (2, f"Provides: python3.11 = {python}")):  # RHEL 9, without and with a newer Python
        s.refused(f"{_DNF} install /root/older.rpm", "root", "python3.11" if version == 2 else "nothing provides")
        c.put("/root/host.spec", _HOST.format(version=version, newer=newer, systemd=systemd))
        package = f"noarch/host-{version}-1.noarch.rpm"
        c.run(f"cd /root && rpmbuild -bb --define '_rpmdir /root' host.spec && {_DNF} install {package}")
    done = c.run(f"{_DNF} install /root/older.rpm")
    assert "scriptlet" not in done.stdout + done.stderr, done
    assert c.out("rpm -q --qf '%{version}' obatchd") == old
    state = [c.out(f"systemctl {what} obatchd", check=False) for what in ("is-enabled", "is-active")]
    assert state == ["disabled", "inactive"], state
    s.say("dnf install obatchd.rpm, without network", ", ".join(state))

    c.put("/etc/obatch/obatchd.toml", CONFIG + "# mine\n")
    c.run("usermod -aG obatch-submit alice; systemctl enable --now obatchd")
    s.ready()
    assert c.ctl("status")["version"] == old
    s.drop("alice", "rpm.jsonl", 60)
    s.under_way("alice", "rpm", 5)
    done = c.run(f"{_DNF} upgrade /root/newer.rpm")
    assert "scriptlet" not in done.stdout + done.stderr, done
    s.finished("alice", "rpm", 60)
    wait_for(lambda: c.ctl("status")["version"] == new, 10, f"{new} runs")
    assert c.out("rpm -q --qf '%{version}' obatchd") == new
    assert "# mine" in c.out("cat /etc/obatch/obatchd.toml") and f"{old}-" not in c.out("ls /opt/obatchd")
    assert c.out("systemctl is-enabled obatchd") == "enabled"
    s.say(f"dnf upgrade to {new} in mid-job", "60 of 60, each once; edited configuration kept; still enabled")

    c.run(f"{_DNF} remove obatchd")
    program_gone(s, f"/etc/obatch/obatchd.toml.rpmsave {SPOOL}/work/state.db /var/lib/obatch")
    assert "# mine" in c.out("cat /etc/obatch/obatchd.toml.rpmsave")
    s.say("dnf remove obatchd", "the program is gone; configuration (.rpmsave), spool and models stay")
    c.run("rm -r /etc/obatch /var/spool/obatch /var/lib/obatch")
    no_trace(s)
