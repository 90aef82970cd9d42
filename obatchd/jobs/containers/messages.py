"""Messages of unpacking: from the confined child to the unpacker, and from the unpacker to the daemon."""

from __future__ import annotations

import msgspec


class Order(msgspec.Struct, frozen=True):
    """One drop to be unpacked."""

    directory: str  # of the job
    name: str  # of the drop
    max_bytes: int
    keep_free_bytes: int  # of the disk
    timeout_s: float
    memory_bytes: int


# Of the child.


class Member(msgspec.Struct, tag="member"):
    """A file in an archive; its blocks follow. Without a name it is the one content."""

    name: bytes = b""
    size: int = 0  # bytes, as the archive says
    is_folder: bool = False


class Block(msgspec.Struct, tag="block"):
    """More bytes of the member."""

    data: bytes


class Note(msgspec.Struct, tag="note"):
    """Something that the job's owner is to know."""

    text: str


class Refused(msgspec.Struct, tag="refused"):
    """The file cannot be unpacked; the last message. From the unpacker: the drop goes to ``failed/``."""

    code: str
    message: str


# Of the unpacker.


class Unpacked(msgspec.Struct, tag="unpacked"):
    """A drop that is unpacked: its content is a file or a folder called ``content``."""

    name: str  # under which the content is read
    is_overlay: bool = False  # the drop is a folder, and the content has some of its files in the form in which we read
    problems: dict[str, str] = {}  # files of a folder that could not be unpacked: path in it, and why
    notes: list[str] = []


class Trouble(msgspec.Struct, tag="trouble"):
    """The disk refused; it can be tried again."""

    error: int  # errno
    message: str
    needed_bytes: int = 0  # what has to be free for an attempt to come further


FromChild = Member | Block | Note | Refused
FromUnpacker = Unpacked | Refused | Trouble

from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)
from_unpacker: msgspec.msgpack.Decoder[FromUnpacker] = msgspec.msgpack.Decoder(FromUnpacker)
