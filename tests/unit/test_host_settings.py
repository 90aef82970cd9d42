"""The settings of a host: those of its own file, and in their places those of its head."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import toml
from settings_support import in_force

from obatchd import log
from obatchd.cluster.host.settings import HostSettings
from obatchd.cluster.messages import Terms
from obatchd.cluster.terms import obeyed, terms
from obatchd.errors import ConfigError
from obatchd.settings.settings import Settings


def of_head(**tables: object) -> Terms:
    """As they arrive from a head with these settings."""
    made = terms(Settings.model_validate(tables))
    return msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Terms)


class Files:
    """The files of a host."""

    def __init__(self, directory: Path) -> None:
        self.own, self.terms = directory / "host.toml", directory / "terms.json"
        self.write({})

    def write(self, tables: dict[str, object]) -> None:
        self.own.write_text(toml.dumps(tables))

    def read(self) -> HostSettings:
        return HostSettings(self.own, {}, self.terms)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_the_head_decides_for_all_hosts_but_not_about_their_machines() -> None:
    told = of_head(
        servers={"slots": 3, "ollama": "/head/ollama", "models_dir": "/head", "environment": {"A": "head"}},
        models={"pull": "never"}, gpu_health={"repeats": 9}, dispatch={"strikes": 8}, context_length=4096,
        gpus={"use": "none"}, model="tiny", cluster={"lease_s": 60},
    )  # fmt: skip
    own = in_force(servers={"models_dir": "/own", "environment": {"A": "own"}}, gpus={"use": "simulated:2"}).value
    found = obeyed(own, told)
    assert (found.servers.slots, found.models.pull, found.gpu_health.repeats) == (3, "never", 9)
    assert (found.dispatch.strikes, found.context_length, told.lease_s) == (8, 4096, 60)
    assert (found.servers.ollama, found.servers.models_dir) == ("ollama", "/own")
    assert (found.servers.environment, found.gpus.use, found.model) == ({"A": "own"}, "simulated:2", "")


def test_no_token_and_no_address_of_the_head_travels() -> None:
    told = of_head(
        servers={"remote_token": "secret", "listen": "10.1.2.3"}, ollama_instances={"10.9.9.9:1": -1},
        alarms={"webhook": "https://chat.example/secret"},
    )  # fmt: skip
    assert not [word for word in ("secret", "10.1.2.3", "10.9.9.9") if word in str(told)]


def test_a_key_that_a_newer_head_has_is_left_out_and_a_bad_value_refused() -> None:
    own = in_force().value
    assert obeyed(own, Terms({"servers": {"speed": 9}, "weather": {"rain": 1}}, 1.0)) == own
    with pytest.raises(ConfigError, match=r"servers\.slots"):
        obeyed(own, Terms({"servers": {"slots": 0}}, 1.0))


def test_live_keys_count_at_once_and_for_others_there_is_a_notice(files: Files) -> None:
    found = files.read()
    found.obey(of_head(servers={"slots": 3, "tune_pause_s": 77}, gpu_health={"repeats": 9}))
    assert (found.value.servers.slots, found.value.servers.tune_pause_s, found.value.gpu_health.repeats) == (
        "auto", 77, 9,
    )  # fmt: skip
    assert found.notices == ["servers.slots: changed, and counts when obatchd host is started again"]
    found.take_all()
    assert (found.value.servers.slots, found.notices) == (3, [])


def test_the_heads_settings_are_kept_for_a_start_without_it(files: Files) -> None:
    found = files.read()
    assert found.terms is None and found.lease_s == 3600
    found.obey(of_head(servers={"slots": 3}, cluster={"lease_s": 60}))
    again = files.read()
    assert (again.value.servers.slots, again.lease_s) == (3, 60)
    assert files.terms.stat().st_mode & 0o777 == 0o600


def test_terms_that_cannot_be_used_leave_those_before(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    found = files.read()
    found.obey(of_head(gpu_health={"repeats": 9}))
    found.obey(Terms({"gpu_health": {"repeats": -1}}, 5.0))
    assert (found.value.gpu_health.repeats, found.lease_s) == (9, 3600)
    assert "terms_refused" in caplog.text


@pytest.mark.parametrize("content", [b"{", b'{"lease_s": "no"}', b"\xff"])
def test_damaged_terms_are_set_aside(files: Files, content: bytes) -> None:
    files.terms.write_bytes(content)
    assert files.read().terms is None
    assert files.terms.with_name("terms.json.damaged").read_bytes() == content


def test_a_key_of_the_head_in_the_hosts_file_is_told(files: Files) -> None:
    files.write({"servers": {"slots": 5, "models_dir": "/m"}})
    found = files.read()
    found.obey(of_head(servers={"slots": 3}))
    [_, ignored] = found.notices
    assert ignored == f"servers.slots in {files.own}: the head decides it for all hosts; remove it"


def test_the_hosts_file_is_read_again_and_a_bad_one_is_refused(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[str] = []
    monkeypatch.setattr(log, "configure", levels.append)
    found = files.read()
    files.write({"log_level": "error", "drain_s": 7})
    found.reread()
    assert (found.value.log_level, found.value.drain_s) == ("error", 7)
    files.write({"log_level": "shout"})
    with pytest.raises(ConfigError):
        found.reread()
    assert found.value.log_level == "error" and levels == ["error"]
