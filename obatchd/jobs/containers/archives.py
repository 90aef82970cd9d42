"""The files in zip and tar archives. Called in the confined child; limits and names are judged by who hears of them."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from typing import BinaryIO

from obatchd.confined import Send
from obatchd.errors import DropRefused
from obatchd.jobs.containers.limits import MEMBERS, bad_member, too_many
from obatchd.jobs.containers.messages import Member
from obatchd.jobs.containers.streams import BLOCK_BYTES, Peeked, copy

_ENCRYPTED = 0x1 | 0x40 | 0x2000  # flags 0, 6 and 13 of APPNOTE.TXT, 4.4.4
_LOCAL_HEADER_BYTES = 30
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_LINK = "is a link; pack the file itself"


def zip(file: BinaryIO, name: str, send: Send) -> None:
    with zipfile.ZipFile(file) as archive:
        for info in checked_members(archive):
            member = _member(_name(info), info.file_size, _name(info).endswith(b"/"))
            send(member)
            if not member.is_folder:
                with archive.open(info) as source:
                    copy(source, send)


def checked_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members; raises DropRefused where one cannot be read, is no plain file, or shares its bytes with another."""
    members = archive.infolist()
    if len(members) > MEMBERS:
        raise too_many()
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        raw = _name(info)
        if info.flag_bits & _ENCRYPTED:
            raise bad_member(raw, "is encrypted; pack it without a password", "encrypted")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            raise bad_member(raw, _LINK)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise bad_member(raw, "is no plain file; leave it out")
        if info.compress_type not in _METHODS:
            raise bad_member(raw, f"is packed by method {info.compress_type}, which is not read; pack it with Deflate")
        if info.header_offset < end:
            raise bad_member(raw, "shares its bytes with another member, as only a zip bomb does")
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
    return members


def _member(name: bytes, size: int, is_folder: bool) -> Member:
    if not name:  # it would pass for the one content
        raise DropRefused("it holds a file without a name; pack it again", code="bad_archive")
    return Member(name, size, is_folder)


def _name(info: zipfile.ZipInfo) -> bytes:
    # zipfile cuts names off at a NUL; programs of Windows separate folders by backslashes.
    return os.fsencode(info.orig_filename.replace("\\", "/"))


def tar(file: BinaryIO, name: str, send: Send) -> None:
    tar_members(Peeked(b"", file), send)


def tar_members(source: Peeked, send: Send) -> None:
    """Those of a tar archive that is read from its beginning to its end, so that what packed it finds a damage."""
    with tarfile.open(fileobj=source, mode="r|", errorlevel=1) as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members.clear()  # else it keeps them all
            raw = os.fsencode(member.name)
            if member.issym() or member.islnk():
                raise bad_member(raw, _LINK)
            if member.issparse():
                raise bad_member(raw, "is a sparse file; pack it as a plain one")
            if not member.isreg() and not member.isdir():
                raise bad_member(raw, "is no plain file; leave it out")
            send(_member(raw, member.size, member.isdir()))
            if member.isreg():
                content = archive.extractfile(member)
                assert content is not None
                copy(content, send)
    while source.read(BLOCK_BYTES):
        pass
    if source.end.strip(b"\0"):
        raise EOFError("its end is missing")
