"""The checks of ``obatchctl doctor`` on one spool."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from obatchd.cli.command import Document
from obatchd.cli.doctor.account import Account, may, other_account, owner_of
from obatchd.cli.doctor.alarm_checks import is_of_alarms
from obatchd.cli.doctor.joined_checks import is_of_hosts
from obatchd.cli.doctor.result import CheckResult, bad, missing_groups, nearest, ok, warn
from obatchd.cli.views.text import size
from obatchd.client.runtime import first_start, given_up, is_service, repair_command, start_command
from obatchd.errors import DaemonDownError, ForbiddenError, ObatchError
from obatchd.settings.settings import Settings
from obatchd.words import counted

_NO_NAME = ("Name or service not known", "No address associated", "name resolution")  # getaddrinfo
_ADVICE = re.compile(r"(?P<text>.*) Ask an administrator for: +(?P<command>sudo usermod -aG \S+ \S+) .*", re.DOTALL)
_GROUP_DROPS = stat.S_IWGRP | stat.S_IXGRP
_ENDED_BY = {"draining": "undrain", "drained": "undrain", "paused": "resume"}  # states that somebody asked for
_NOT_OLLAMA = ("not as Ollama does", "is not Ollama's")
_AT_ONCE = re.compile(r", at once with: obatchctl servers resume [^\s)]+")
_DIRECTORIES = ("inbox", "work", "outbox", "failed")


def daemon(spool: Path, found: Document | ObatchError) -> list[CheckResult]:
    """Whether the daemon answers, and is content; ``found`` is its status, or why that cannot be had."""
    look = f"obatchctl --spool {spool} status"
    if isinstance(found, DaemonDownError):
        down = found.code == DaemonDownError.code
        text = f"obatchd is not running on {spool}; drops in the inbox wait" if down else found.message
        if down and (failed := given_up(spool)):
            return [bad("daemon", f"{text}: {failed}", start_command(spool))]
        start = first_start(spool) if found.code == "no_spool" else start_command(spool)
        return [warn("daemon", text, look if found.code == "permission" else start)]
    if found_command := isinstance(found, ForbiddenError) and _ADVICE.fullmatch(found.message):
        return [bad("daemon", found_command["text"], found_command["command"])]
    if isinstance(found, ObatchError):
        return [bad("daemon", found.message, look)]
    content = ok("daemon", f"{found['state']}, pid {found['pid']}, version {found['version']}")
    if (word := _ENDED_BY.get(found["state"])) and not found["reasons"]:
        content = warn("daemon", f"{content.text}; no prompt is sent to a server", f"obatchctl --spool {spool} {word}")
    notices = [
        warn("daemon", notice, look)
        for notice in found["notices"]
        if not is_of_alarms(notice) and not is_of_hosts(notice, found)
    ]
    if found["state"] != "degraded":
        return [*notices, content]
    reasons = [reason for reason in found["reasons"] if not is_of_hosts(reason, found)]
    told = [_trouble(reason, found["servers"], spool) for reason in reasons]
    if all(result.about == "server" for result in told):
        told.append(bad("daemon", f"{content.text}: see the lines above", look))
    return [*notices, *told]


def _trouble(reason: str, servers: list[Document], spool: Path) -> CheckResult:
    """One reason for which the daemon is not content, with what to do about it."""
    control = f"obatchctl --spool {spool}"
    server = next((server for server in servers if reason.startswith(f"server {server['id']} ")), None)
    if server is None:
        return bad("daemon", reason, f"{control} status")
    reason = _AT_ONCE.sub("", reason)  # the next command says it again
    if server["state"] == "quarantined":
        return bad("server", reason, f"{control} gpus")
    if server["kind"] == "remote" and any(words in reason for words in (*_NO_NAME, *_NOT_OLLAMA)):
        return bad("server", reason, "check its address in [ollama_instances]")
    down = server["state"] in ("backoff", "failed", "starting")
    resume = " ".join([control, "servers resume", server["id"]])
    if server["kind"] == "remote" and down and "Connection refused" in reason:
        return bad("server", reason, f"start Ollama at {server['url']}, then: {resume}")
    return bad("server", reason, resume if down or server.get("cannot_have") else f"{control} status")


def directories(spool: Path) -> Iterator[CheckResult]:
    """The spool's directories: there and usable."""
    place, closed = nearest(spool)
    if closed:
        yield warn("spool", f"you may not look into {spool}; the daemon's user must be able to", f"ls -ld {place}")
        return
    if place != spool.absolute():
        text = f"{spool} does not exist and {place} is not yours to write"
        if os.access(place, os.W_OK):
            yield warn("spool", f"{spool} does not exist yet; the daemon makes it", start_command(spool))
        else:
            yield bad("spool", text, f"sudo install -d -o {os.geteuid()} {spool}")
        return
    inbox = spool / "inbox"
    if os.geteuid() not in (0, owner_of(spool)) and inbox.is_dir() and is_service(spool):
        yield _of_a_service(spool)
        return
    account = other_account(spool)
    faults = [*_unusable(spool, account), *_shut_to_its_group(spool)]
    yield from faults
    if not may(account, spool, "wx"):
        whose = f"{account.name}'s" if account else "yours"
        yield warn("spool", f"{spool} is not {whose} to write; it must be the daemon's", f"ls -ld {spool}")
    elif not faults:
        mounts = {path.stat().st_dev for name in _DIRECTORIES if (path := spool / name).is_dir()}
        where = "one filesystem" if len(mounts) < 2 else "several filesystems: drops are copied"
        yield ok("spool", f"{spool}: writable, {where}")


def _unusable(spool: Path, account: Account | None) -> Iterator[CheckResult]:
    """Directories that the daemon's user may not use: it does not start then."""
    for name in _DIRECTORIES:
        path = spool / name
        try:
            path.stat()
        except FileNotFoundError:
            continue  # made at the daemon's start
        except OSError as error:
            yield bad("spool", f"{path}: {error.strerror}", f"ls -ld {spool} {path}")
            continue
        if not may(account, path, "rwx"):
            found, whose = (bad, f"{account.name}'s") if account else (warn, "yours")
            text = f"{path} is not {whose} to read and write; it must be the daemon's"
            yield found("spool", text, repair_command(spool) or f"ls -ld {path}")


def _shut_to_its_group(spool: Path) -> Iterator[CheckResult]:
    """A service's inbox takes drops of the members of its group."""
    with suppress(OSError, KeyError):
        inbox, found = spool / "inbox", (spool / "inbox").stat()
        if is_service(spool) and found.st_mode & _GROUP_DROPS != _GROUP_DROPS:
            text = (
                f"{inbox} does not let its group {grp.getgrgid(found.st_gid).gr_name} in: nobody may drop files there"
            )
            yield bad("spool", text, repair_command(spool) or f"sudo chmod 3730 {inbox}")


def _of_a_service(spool: Path) -> CheckResult:
    """Whether this user may drop files into a system service's inbox, as its group may, and what to do if not."""
    inbox = spool / "inbox"
    if os.access(inbox, os.W_OK | os.X_OK):
        return ok("spool", f"you may drop files into {inbox}")
    if shut := next(_shut_to_its_group(spool), None):
        return shut
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
        group = grp.getgrgid(inbox.stat().st_gid)
    except KeyError:
        return bad("spool", f"you may not drop files into {inbox}", f"ls -ld {inbox}")
    if group.gr_gid in os.getgroups():
        return bad("spool", f"you may not drop files into {inbox}, although you are in its group", f"getfacl {inbox}")
    if name in group.gr_mem:
        text = f"you are in the group {group.gr_name}, but this session began before: log out and in again"
        return bad("spool", text, f"newgrp {group.gr_name}")
    text = f"only members of the group {group.gr_name} may drop files into {inbox}; then log out and in again"
    return bad("spool", text, f"sudo usermod -aG {group.gr_name} {name}")


def groups(settings: Settings) -> Iterator[CheckResult]:
    """The groups of a service's users."""
    for key, name in missing_groups(settings):
        text = f"there is no group {name} ({key}), so none of its members can use obatchd"
        yield bad("groups", text, f"sudo groupadd --system {name}")


def disk(spool: Path, settings: Settings) -> CheckResult:
    """Free bytes and inodes where the spool is."""
    text, low, look = room(spool, settings)
    return bad("disk", f"{text}: too little, dispatch pauses", look) if low else ok("disk", text)


def room(directory: Path, settings: Settings) -> tuple[str, bool, str]:
    """What is free where a directory is, in words, whether that is too little, and how to see it."""
    place, _ = nearest(directory)
    found = os.statvfs(place)
    free_bytes = found.f_bavail * found.f_frsize
    text = f"{size(free_bytes)} free"
    if found.f_files:  # some filesystems, e.g. btrfs, have no fixed number of inodes and report 0
        text += f", {counted(found.f_favail, 'inode')} free"
    low_inodes = bool(found.f_files) and found.f_favail < settings.disk.min_free_inodes
    low = free_bytes < settings.disk.min_free_bytes or low_inodes
    return text, low, f"df -h {place}; df -i {place}"
