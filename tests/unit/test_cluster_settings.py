"""``[cluster]``: keys of the head, keys of a host, and what is wrong with both at once."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from obatchd.settings.addresses import Address
from obatchd.settings.tables.cluster import ClusterSettings

PIN = "sha256:" + "0a" * 32


def test_by_default_there_is_no_door_and_no_head() -> None:
    settings = ClusterSettings()
    assert settings.door is None
    assert settings.head_address is None
    assert settings.lease_s == 3600


def test_addresses_of_a_head_and_of_a_host() -> None:
    assert ClusterSettings(listen="[fd00::1]:7700", engine="ray").door == Address("fd00::1", 7700)
    host = ClusterSettings(head="head.example.org:7700", fingerprint=PIN, name="node07")
    assert host.head_address == Address("head.example.org", 7700)
    assert str(ClusterSettings(head="[fd00::1]:7700", fingerprint=PIN).head_address) == "[fd00::1]:7700"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"listen": "10.0.0.1:7700", "head": "10.0.0.2:7700", "fingerprint": PIN}, "listen make this the head"),
        ({"head": "10.0.0.2:7700"}, "go together"),
        ({"head": "10.0.0.2", "fingerprint": PIN}, "a host with a port"),
        ({"head": "10.0.0.2:7700", "fingerprint": "0a"}, "64 digits"),
        ({"engine": "slurm"}, "needs listen"),
        ({"listen": "head:7700"}, "an IP address of this host"),
        ({"listen": "auto"}, "an IP address of this host"),
        ({"name": "Node.7"}, "small letters"),
        ({"name": "node-"}, "small letters"),
    ],
)
def test_what_is_wrong_is_said_in_words(table: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ClusterSettings.model_validate(table)
