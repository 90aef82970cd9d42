"""Who may come: codes, enrolments and credentials, and the file that has them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from obatchd.cluster import links
from obatchd.cluster.head.certificate import of_head
from obatchd.cluster.head.roster import Asked, Roster
from obatchd.errors import ClusterError, NotFoundError


class Here:
    """Which hosts are connected, and from which machine. Implements ``Connected``."""

    def __init__(self, **machines: str) -> None:
        self._machines = machines

    def machine_of(self, name: str) -> str | None:
        return self._machines.get(name)


NOBODY = Here()


def roster(tmp_path: Path) -> Roster:
    return Roster(tmp_path / "cluster" / "hosts.json")


def test_all_is_there_after_a_restart_and_no_secret_is_in_the_file(tmp_path: Path) -> None:
    first = roster(tmp_path)
    code, enrolment = first.make_code(), first.make_enrolment(3600)
    credential = first.admit(code.secret, Asked("node01", "m1"), NOBODY)
    first.set_drained("node01", "its fan")
    second = roster(tmp_path)
    assert second.names() == ["node01"] and second.drained("node01") == "its fan"
    found = second.holder(credential)
    assert found is not None and found.name == "node01"
    second.admit(enrolment.secret, Asked("node02", "m2"), NOBODY)
    file = tmp_path / "cluster" / "hosts.json"
    text = file.read_text()
    assert not [secret for secret in (code.secret, credential, enrolment.secret) if secret in text]
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o077 == 0


def test_an_enrolment_lets_many_in_until_it_is_revoked_with_all_its_hosts(tmp_path: Path) -> None:
    kept = roster(tmp_path)
    enrolment = kept.make_enrolment(3600)
    credentials = [kept.admit(enrolment.secret, Asked(f"node0{n}", f"m{n}", 60.0), NOBODY) for n in range(3)]
    own = kept.admit(kept.make_code().secret, Asked("own", "m9"), NOBODY)
    holder = kept.holder(credentials[0])
    assert holder is not None and holder.until_s is not None and holder.until_s <= time.time() + 60
    assert kept.admit(enrolment.secret, Asked("node01", "m1"), NOBODY)  # after a requeue: the same host
    assert kept.revoke(enrolment.id) == ["node00", "node01", "node02"]
    assert kept.names() == ["own"] and kept.holder(own) is not None and kept.holder(credentials[0]) is None
    with pytest.raises(ClusterError) as told:
        kept.admit(enrolment.secret, Asked("node01", "m1"), NOBODY)
    assert told.value.code == "enrolment_revoked"
    assert kept.enrolments() == []


def test_an_enrolment_takes_no_name_of_another_host(tmp_path: Path) -> None:
    kept = roster(tmp_path)
    kept.admit(kept.make_code().secret, Asked("node01", "m1"), NOBODY)
    enrolment = kept.make_enrolment(3600)
    with pytest.raises(ClusterError, match="obatchctl hosts forget node01") as told:
        kept.admit(enrolment.secret, Asked("node01", "m1"), NOBODY)
    assert told.value.code == "name_taken"
    again = kept.admit(kept.make_code().secret, Asked("node01", "reinstalled"), NOBODY)
    assert kept.holder(again) is not None


def test_the_next_job_on_a_node_takes_the_name_that_an_ended_one_left(tmp_path: Path) -> None:
    kept = roster(tmp_path)
    first, second = kept.make_enrolment(3600), kept.make_enrolment(3600)
    old = kept.admit(first.secret, Asked("node01", "m1", 600.0), NOBODY)
    for wrong, connected in ((Asked("node01", "m1"), Here(node01="m1")), (Asked("node01", "m2"), NOBODY)):
        with pytest.raises(ClusterError) as told:
            kept.admit(second.secret, wrong, connected)
        assert told.value.code == "name_taken"
    assert kept.admit(second.secret, Asked("node01", "m1", 600.0), NOBODY)
    assert kept.holder(old) is None


def test_a_refusal_does_not_use_a_code_up(tmp_path: Path) -> None:
    kept = roster(tmp_path)
    code = kept.make_code()
    with pytest.raises(ClusterError):
        kept.admit(code.secret, Asked("node01", "m1"), Here(node01="m2"))
    assert kept.admit(code.secret, Asked("node01", "m2"), Here(node01="m2"))


def test_a_file_that_cannot_be_read_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    roster(tmp_path).make_code()
    file = tmp_path / "cluster" / "hosts.json"
    file.write_text(file.read_text()[:-20])
    before = file.read_bytes()
    broken = roster(tmp_path)
    assert "cannot be read" in broken.problem and broken.names() == []
    with pytest.raises(ClusterError, match="bring it back from a backup"):
        broken.make_code()
    assert file.read_bytes() == before


def test_where_the_disk_refuses_nothing_has_changed(tmp_path: Path) -> None:
    kept = roster(tmp_path)
    code = kept.make_code()
    credential = kept.admit(code.secret, Asked("node01", "m1"), NOBODY)
    (tmp_path / "cluster" / ".hosts.json.new").mkdir()
    with pytest.raises(ClusterError, match="cannot be written"):
        kept.forget("node01")
    assert kept.holder(credential) is not None


def test_what_there_is_not_is_said(tmp_path: Path) -> None:
    kept = roster(tmp_path)
    with pytest.raises(NotFoundError, match="node07"):
        kept.forget("node07")
    with pytest.raises(NotFoundError, match="no enrolment"):
        kept.revoke("enrol-1")


def test_a_link_is_read_as_it_is_written_and_others_are_not_repeated() -> None:
    link = links.parse("  obatch://[fd00::1]:7700/#abcdefghijklmnop." + "0a" * 32 + "\n")
    assert links.parse(str(link)) == link and link.head.host == "fd00::1"
    for wrong in ("", "http://head", "obatch://head:7700/#secret-that-was-cut-off", "obatch://a b:1/#x"):
        with pytest.raises(ClusterError, match="obatchctl hosts code") as told:
            links.parse(wrong)
        assert told.value.code == "no_link" and "cut-off" not in told.value.message


def test_the_certificate_stays_the_same_and_is_never_replaced(tmp_path: Path) -> None:
    made, again = of_head(tmp_path), of_head(tmp_path)
    assert made.is_new and not again.is_new and made.fingerprint == again.fingerprint
    file = tmp_path / "certificate.pem"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("nothing")
    with pytest.raises(ClusterError, match="every host then has to join again"):
        of_head(tmp_path)
    assert file.read_text() == "nothing"


def test_without_the_library_it_is_said_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    with pytest.raises(Exception, match=r"install cryptography"):
        of_head(tmp_path)
