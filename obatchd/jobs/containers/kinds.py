"""The kinds of files that have to be unpacked, known by their first bytes; and other kinds, so that they can be named.

Everything in ``CONTAINERS`` is read in a confined child (:mod:`obatchd.confined`), and what comes out of it passes
:class:`obatchd.jobs.containers.limits.Meter`; there is no other way to read one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from obatchd.jobs.model import (
    ARCHIVE_ENDINGS,
    PACKED_ENDINGS,
    PARQUET_ENDINGS,
    WORKBOOK_ENDINGS,
    without_packing,
)

HEAD_BYTES = 512  # the mark of a tar archive ends at 262
_TAR_MARK, _TAR_MARK_AT = b"ustar", 257
# The name of a zip archive's first member, and of parts that Excel and its like write first (ECMA-376, part 2).
_FIRST_NAME_AT = 30
_OFFICE_PARTS = (b"[Content_Types].xml", b"_rels/", b"docProps/", b"xl/")


class Container(NamedTuple):
    """A kind of file that holds others, or that has to be made into one that we read."""

    name: str
    words: str
    beginnings: tuple[bytes, ...]
    reader: str  # module and function in this package, called in the child
    endings: tuple[str, ...]  # of files' names, of which content of this kind is expected
    read_as: tuple[str, ...] = ()  # endings under which it is read then; the first is appended to another name
    library: str = ""  # that it needs


_ZST = (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")  # a frame, and one to be skipped, as of pzstd (RFC 8878, 3.1)
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_BOOK_NAMES = (*WORKBOOK_ENDINGS, ".csv")
WORKBOOK = Container("xlsx", "an Excel workbook", (), "tables.workbook", WORKBOOK_ENDINGS, _BOOK_NAMES, "openpyxl")
TAR = Container("tar", "a tar archive", (), "archives.tar", ARCHIVE_ENDINGS)
CONTAINERS = (
    Container("zip", "a zip archive", _ZIP, "archives.zip", (".zip",)),
    TAR,
    WORKBOOK,
    Container(
        "parquet", "a Parquet file", (b"PAR1",), "tables.parquet", PARQUET_ENDINGS, PARQUET_ENDINGS, "pyarrow.parquet"
    ),
    Container("gz", "packed with gzip", (b"\x1f\x8b",), "streams.gz", (".gz", ".tgz")),
    Container("zst", "packed with zstd", _ZST, "streams.zst", (".zst", ".tzst"), (), "zstandard"),
    Container("xz", "packed with xz", (b"\xfd7zXZ\0",), "streams.xz", (".xz", ".txz")),
    Container("bz2", "packed with bzip2", (b"BZh",), "streams.bz2_", (".bz2", ".tbz2")),
)  # fmt: skip
# Kinds that we do not read.
_FOREIGN = (
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "pack it as .zip or .tar.gz"),
    (b"Rar!\x1a\x07", "a RAR archive", "pack it as .zip or .tar.gz"),
    (b"\x1f\x9d", "packed with compress", "pack it with gzip"),
    (b"\x04\x22\x4d\x18", "packed with LZ4", "pack it with gzip or zstd"),
    (b"LZIP", "packed with lzip", "pack it with xz"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file, or one with a password",
     "save it as .xlsx or .csv, without a password"),
    (b"%PDF-", "a PDF document", "put its text into a .txt file"),
    (b"PARE", "a Parquet file that is encrypted", "write it without encryption"),
    (b"ARROW1", "an Arrow file", "write it as .parquet or .jsonl"),
    (b"Obj\x01", "an Avro file", "write it as .parquet or .jsonl"),
    (b"ORC", "an ORC file", "write it as .parquet or .jsonl"),
    (b"\x93NUMPY", "a NumPy array", "write it as .jsonl or .csv"),
    (b"\x89HDF\r\n", "an HDF5 file", "write it as .jsonl or .csv"),
    (b"SQLite format 3\0", "an SQLite database", "write its table as .csv"),
    (b"\x89PNG\r\n", "a PNG picture", "put it into a folder, beside a .jsonl file that names it"),
    (b"\xff\xd8\xff", "a JPEG picture", "put it into a folder, beside a .jsonl file that names it"),
    (b"GIF8", "a GIF picture", "put it into a folder, beside a .jsonl file that names it"),
    (b"GGUF", "a model of Ollama's", "it is no prompt: give it to ollama create"),
    (b"\x7fELF", "a program", "drop prompts"),
    (b"MZ\x90\0", "a program", "drop prompts"),
)  # fmt: skip
_FIRST_BYTES = {begin[:1] for container in CONTAINERS for begin in container.beginnings} | {b[:1] for b, *_ in _FOREIGN}
_NO_TEXT = re.compile(rb"[^\t\n\f\r\x1b -\xff]|\A%PDF-")  # texts may begin with ORC, PAR1 or BZh as well


def container_of(head: bytes, name: str) -> Container | None:
    """The kind of a file that begins with ``head``, its first ``HEAD_BYTES``, where it has to be unpacked.

    A zip archive is a workbook where its first member or its name says so.
    """
    for container in CONTAINERS if _may_be_known(head) else ():
        if head.startswith(container.beginnings):
            is_book = head[_FIRST_NAME_AT:].startswith(_OFFICE_PARTS) or name.lower().endswith(WORKBOOK_ENDINGS)
            return WORKBOOK if container.name == "zip" and is_book else container
    return TAR if head[_TAR_MARK_AT:].startswith(_TAR_MARK) else None


def kind_in_words(head: bytes) -> tuple[str, str]:
    """What kind of file begins with ``head``, and what to do about it; empty where it is none that is known."""
    for beginning, words, remedy in _FOREIGN if _may_be_known(head) else ():
        if head.startswith(beginning):
            return words, remedy
    if (container := container_of(head, "")) is not None:
        return container.words, f"give it a name that ends in {container.endings[0]}"
    return "", ""


def _may_be_known(head: bytes) -> bool:
    """Whether it is worth while to look at all kinds: few drops have to be."""
    return head[:1] in _FIRST_BYTES and _NO_TEXT.search(head, 0, HEAD_BYTES) is not None


def drop_container(head: bytes, name: str) -> Container | None:
    """The kind of a dropped file that has to be unpacked before it is read; None for any other."""
    container, lower = container_of(head, name), name.lower()
    is_read_as_it_lies = lower.endswith(".gz") and not lower.endswith(ARCHIVE_ENDINGS)
    return None if container is not None and container.name == "gz" and is_read_as_it_lies else container


def is_to_convert(name: str) -> bool:
    """Whether a file of a folder is unpacked for itself, by its name."""
    lower = name.lower()
    return not lower.endswith((*ARCHIVE_ENDINGS, ".gz")) and lower.endswith(
        (*PACKED_ENDINGS, *WORKBOOK_ENDINGS, *PARQUET_ENDINGS)
    )


def name_of_content(container: Container, name: str) -> str:
    """The name under which the content of the file ``name`` is read, when it is unpacked."""
    if not container.read_as:
        return without_packing(name)
    return name if name.lower().endswith(container.read_as) else name + container.read_as[0]
