"""Of which head a host is one: as ``obatchd-join`` wrote it, or as it joined by itself with ``--enrol``."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import time
from pathlib import Path

import msgspec

from obatchd import log
from obatchd.cluster import joining, links
from obatchd.cluster.host.directory import HostDirectory, default_name, machine
from obatchd.cluster.host.files import read_file, write_file
from obatchd.cluster.host.way import HeadPlace
from obatchd.cluster.links import Link
from obatchd.errors import ClusterError, ConfigError, HostError
from obatchd.settings.tables.cluster import ClusterSettings

_log = log.get(__name__)
_JOIN = "type on the head:  obatchctl hosts code  and on this host what that says"
_ENROLMENT_BYTES = 4096
_AGAIN_S = (1.0, 2.0, 5.0, 10.0)  # between two tries to join a head that is not reached
_USELESS = ("wrong_secret", "wrong_certificate")  # another try of the same link would end the same way
_encode = msgspec.json.Encoder().encode


class Membership(msgspec.Struct, frozen=True):
    """The head, how it is known, and what this host is called there. The credential is in a file of its own."""

    name: str
    head: str  # host:port
    fingerprint: str


def place_of(member: Membership, directory: HostDirectory) -> HeadPlace:
    """Where the head is, with what this host shows it. Raises ConfigError, with what to type, where it has nothing."""
    try:
        credential = read_file(directory.credential_file).decode().strip()
    except FileNotFoundError:
        raise ConfigError(f"{directory.credential_file} is not there, so no head knows this host: {_JOIN}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{directory.credential_file} cannot be read ({error}): {_JOIN}.") from None
    return HeadPlace(member.head, member.fingerprint, credential)


def known(settings: ClusterSettings, directory: HostDirectory, name: str | None) -> Membership:
    """The membership of a host that has joined. ``name`` of the command line goes before that of its files.

    Raises ConfigError, with what to type, where it has not.
    """
    if settings.head:
        return Membership(name or settings.name or default_name(), settings.head, settings.fingerprint)
    if (kept := _kept(directory)) is not None:
        return msgspec.structs.replace(kept, name=name or kept.name)
    raise ConfigError(f"This host belongs to no head ([cluster] head is empty): {_JOIN}.")


def forget(directory: HostDirectory) -> None:
    """The head does not know this host any more: what it was shown is good for nothing."""
    directory.credential_file.unlink(missing_ok=True)


async def enrolled(source: str, directory: HostDirectory, name: str | None, until_s: float | None) -> Membership:
    """Join with the link in a file or at a descriptor (``fd:N``), and keep that in the directory.

    A head that is not reached is tried again for ever, or waited for as one of its hosts where this host joined before.
    ``until_s`` is the end of the allocation, seconds since the epoch; the credential ends with it.

    Raises ConfigError where there is no link, or it is good for nothing, ClusterError where the head refuses this host.
    """
    try:
        link = links.parse(await asyncio.to_thread(_secret, source))
    except ClusterError as error:
        raise ConfigError(f"--enrol {source}: {error.message}") from None
    kept = _kept(directory) if directory.credential_file.exists() else None
    same = kept is not None and (kept.head, kept.fingerprint) == (str(link.head), link.fingerprint)
    try:
        return await _joined(link, directory, name, until_s, patient=not same)
    except ClusterError as error:
        if not same or kept is None:
            if error.code in _USELESS:
                raise ConfigError(f"This host cannot join {link.head}: {error.message}") from None
            raise
        _log.warning("enrolment_not_used", reason=error.message, host=kept.name)
        return msgspec.structs.replace(kept, name=name or kept.name)


async def _joined(
    link: Link, directory: HostDirectory, name: str | None, until_s: float | None, *, patient: bool
) -> Membership:
    member = Membership(name or default_name(), str(link.head), link.fingerprint)
    tries = 0
    while True:
        lasts_s = None if until_s is None else max(0.0, until_s - time.time())
        try:
            joined = await joining.join(link, member.name, machine(), lasts_s)
            break
        except ClusterError as error:
            if error.code != "head_unreachable" or not patient:
                raise
            if not tries:
                _log.warning("head_away", head=member.head, reason=error.message)
        await asyncio.sleep(_AGAIN_S[min(tries, len(_AGAIN_S) - 1)])
        tries += 1
    try:
        write_file(directory.credential_file, f"{joined.credential}\n".encode())
        write_file(directory.membership_file, _encode(member))
    except OSError as error:
        words = f"{directory.root} does not take the credential of this host: {log.reason(error)}. Make room there"
        raise HostError(f"{words}, or name another directory with --dir.") from None
    _log.info("host_enrolled", host=member.name, head=member.head)
    return member


def _kept(directory: HostDirectory) -> Membership | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(read_file(directory.membership_file), type=Membership)
    return None


def _secret(source: str) -> str:
    """The link, which is in nobody's arguments or environment. Raises ConfigError where it cannot be read."""
    try:
        if source.startswith("fd:"):
            with open(int(source[3:]), "rb") as file:
                return file.read(_ENROLMENT_BYTES).decode()
        path = Path(source)
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{path} can be read by others than its owner, and it holds a secret: chmod 600 {path}")
        return path.read_bytes()[:_ENROLMENT_BYTES].decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file, nor fd:N"
        raise ConfigError(
            f"--enrol {source}: no link can be read there ({reason}); obatchctl hosts enrol on the head makes the file"
        ) from None
