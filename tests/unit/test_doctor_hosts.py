"""What ``obatchctl doctor`` says of joined hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_fleet_views import page

from obatchd.cli.doctor import host_checks, spool_checks
from obatchd.cli.doctor.joined_checks import joined, machines
from obatchd.cli.doctor.result import CheckResult
from obatchd.errors import ControlError, ForbiddenError, ObatchError
from obatchd.settings.settings import Settings

HEAD: dict[str, Any] = {"listen": "127.0.0.1:7700"}


def status(**states: str) -> dict[str, Any]:
    made = page(hosts=3, **states)
    for host in made["hosts"]:
        host |= {"version": made["version"]}
        if host["state"] == "away":
            host |= {"reason": "it has said nothing for 7.5 s"}
    return made


def test_hosts_that_are_here_are_one_line() -> None:
    [found] = joined(status())
    assert (found.level, found.text) == ("ok", "3 of 3 here, 12 servers")


def test_a_host_that_is_away_is_named_once_with_the_next_command(tmp_path: Path) -> None:
    told = status(node02="away") | {"state": "degraded"}
    _, away = joined(told)
    assert (away.level, away.text) == ("warn", "node02 is away: it has said nothing for 7.5 s")
    assert away.next_command == "ssh node02 systemctl status obatchd-host"
    of_daemon = spool_checks.daemon(tmp_path, told)
    assert [result.text.partition(":")[0] for result in of_daemon] == ["degraded, pid 812, version 0.9.0"]


def test_where_no_host_is_here_that_is_bad() -> None:
    first, *_ = joined(status(node01="away", node02="away", node03="away"))
    assert (first.level, first.text) == ("bad", "none of 3 is here: nothing is answered there")
    [none] = joined(page(hosts=0))
    assert none.next_command == "obatchctl hosts code"


def test_versions_clocks_and_the_hosts_own_notices_are_told(tmp_path: Path) -> None:
    told = status()
    told["hosts"][0]["version"] = "0.9.1"
    told["notices"] = ["host node02: its clock is 30 s behind ours; let it follow a time server (timedatectl)"]
    told["notices"] += ["host node01: it gets no work: by an administrator at 09:30"]
    told["reasons"] = ["host node03: The GPU driver has said nothing for 15 s."]
    _, version, drained, clock, driver = joined(told)
    assert drained.next_command == "obatchctl hosts resume node01"
    assert version.text == "node01 runs obatchd 0.9.1, the head 0.9.0: install the same on both"
    assert clock.text.startswith("node02: its clock is 30 s behind ours")
    assert clock.next_command == "ssh node02 timedatectl set-ntp true"
    assert driver.text == "node03: The GPU driver has said nothing for 15 s."
    assert not any("clock" in result.text for result in spool_checks.daemon(tmp_path, told)), "not twice"


def test_a_head_needs_neither_driver_nor_ollama(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_checks, "_run", lambda command: '{"error": "Driver Not Loaded"}')
    monkeypatch.setattr("shutil.which", lambda name: None)
    settings = Settings(cluster=HEAD)
    assert host_checks.driver(settings).level == "ok"
    assert host_checks.ollama(settings).text == "not installed on this host: joined hosts have theirs"
    assert host_checks.ollama(Settings()).level == "bad"


def test_ports_of_servers_elsewhere_are_not_looked_for_here() -> None:
    told = status()
    for server in told["servers"]:
        server["url"] = "http://127.0.0.1:11500"
    assert host_checks.ports(Settings(), told).text == "no server of the daemon uses one now"


class Client:
    """The part of :class:`obatchd.client.control.ControlClient` that is asked."""

    def __init__(self, answer: dict[str, Any] | ObatchError) -> None:
        self._answer = answer

    def get(self, path: str) -> dict[str, Any]:
        assert path == "hosts/findings"
        if isinstance(self._answer, ObatchError):
            raise self._answer
        return self._answer


def findings(answer: dict[str, Any] | ObatchError) -> list[CheckResult]:
    client: Any = Client(answer)
    return list(machines(client))


def test_what_hosts_find_on_their_machines_is_told_with_their_names() -> None:
    disk = {"level": "warn", "about": "disk", "text": "2 GB free", "next_command": "ssh node02 'df -h /var'"}
    found = findings({"hosts": [{"host": "node01", "findings": []}, {"host": "node02", "findings": [disk]}]})
    assert found == [CheckResult("warn", "disk", "2 GB free", "ssh node02 'df -h /var'", "node02")]


def test_who_may_not_see_it_or_cannot_is_told_so() -> None:
    [forbidden] = findings(ForbiddenError("for administrators"))
    assert (forbidden.level, forbidden.text) == ("ok", "what each finds on its own machine is shown to administrators")
    [failed] = findings(ControlError("it broke off"))
    assert failed.level == "warn" and failed.text.endswith("is not known: it broke off")
