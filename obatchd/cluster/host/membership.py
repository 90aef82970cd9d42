"""Where a host's head is and what it shows that one: as ``obatchd-join`` wrote it into its file and directory."""

from __future__ import annotations

from typing import NamedTuple

from obatchd.cluster.host.directory import HostDirectory, default_name
from obatchd.cluster.host.files import read_file
from obatchd.cluster.host.way import HeadPlace
from obatchd.errors import ConfigError
from obatchd.settings.tables.cluster import ClusterSettings

_JOIN = "type on the head:  obatchctl hosts code  and on this host what that says"


class Membership(NamedTuple):
    """Of which head this host is one, and what it is called there."""

    name: str
    place: HeadPlace


def of_files(settings: ClusterSettings, directory: HostDirectory, name: str | None) -> Membership:
    """The membership of a host that has joined. ``name`` of the command line goes before that of the file.

    Raises ConfigError, with what to type, where it has not.
    """
    if not settings.head:
        raise ConfigError(f"This host belongs to no head ([cluster] head is empty): {_JOIN}.")
    try:
        credential = read_file(directory.credential_file).decode().strip()
    except FileNotFoundError:
        raise ConfigError(f"{directory.credential_file} is not there, so no head knows this host: {_JOIN}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{directory.credential_file} cannot be read ({error}): {_JOIN}.") from None
    place = HeadPlace(settings.head, settings.fingerprint, credential)
    return Membership(name or settings.name or default_name(), place)
