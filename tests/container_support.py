"""Files that have to be unpacked, good and hostile, made by code."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

MIB = 1024**2
SMALL_BOMB_BYTES = 32 * MIB  # where the limits are those of a test
LINE = b'{"id": "z", "prompt": "Say hi"}\n'


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def member(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def tarred(*members: tuple[str | tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def workbook(*rows: list[Any], title: str = "Prompts", **more: list[list[Any]]) -> bytes:
    book, file = openpyxl.Workbook(), io.BytesIO()
    sheet = book.active
    assert sheet is not None
    sheet.title = title
    for row in rows:
        sheet.append(row)
    for name, content in more.items():
        other = book.create_sheet(name)
        for row in content:
            other.append(row)
    book.save(file)
    return file.getvalue()


SHEET = "xl/worksheets/sheet1.xml"
SPREADSHEET = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def altered_workbook(**parts: bytes) -> bytes:
    """A workbook with other parts: ``sheet``, ``strings``, ``book``."""
    names = {"sheet": SHEET, "strings": "xl/sharedStrings.xml", "book": "xl/workbook.xml"}
    wanted = {names[part]: content for part, content in parts.items()}
    with zipfile.ZipFile(io.BytesIO(workbook(["prompt"], ["hi"]))) as whole:
        return zipped(*[(name, wanted.get(name, whole.read(name))) for name in whole.namelist()])


def sheet(rows: str, dimension: str = "") -> bytes:
    return (
        f'<?xml version="1.0"?><worksheet {SPREADSHEET}>{dimension}<sheetData>{rows}</sheetData></worksheet>'.encode()
    )


def parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


# Hostile ones.


def many_members(count: int) -> bytes:
    """A zip archive with so many empty members, made without a library that would take minutes."""
    local, central = bytearray(), bytearray()
    for number in range(count):
        name = b"%07d.txt" % number
        head = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0)
        central += b"PK\x01\x02" + struct.pack("<H", 20) + head + struct.pack("<HHHII", 0, 0, 0, 0, len(local)) + name
        local += b"PK\x03\x04" + head + name
    size, start = len(central), len(local)
    end64 = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, start)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, start + size, 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return bytes(local + central + end64 + locator + end)


def overlapping() -> bytes:
    """Two names for the bytes of one member, after David Fifield's bomb."""
    raw = bytearray(zipped(("a.txt", b"x" * 1000), ("b.txt", b"x" * 1000)))
    second = raw.rfind(b"PK\x01\x02")
    raw[second + 42 : second + 46] = struct.pack("<I", 0)
    return bytes(raw)


def patched(raw: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    """``raw`` with other bytes so far behind each ``mark``."""
    data, at = bytearray(raw), -1
    while (at := data.find(mark, at + 1)) >= 0:
        data[at + offset : at + offset + len(value)] = value
    return bytes(data)


def encrypted() -> bytes:
    raw = zipped(("open.txt", b"a"), ("secret.txt", b"b"))
    at = raw.rfind(b"PK\x01\x02")
    return raw[: at + 8] + b"\x01\0" + raw[at + 10 :]


def tar_that_claims(size: int) -> bytes:
    info = tarfile.TarInfo("a.txt")
    info.size = size
    return info.tobuf() + b"\0" * 1024


def long_window() -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=29, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=1024 * MIB)
    return packer.compress(b"x" * MIB) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


def xz_that_wants(dictionary_bytes: int) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]
    raw = bytearray(lzma.compress(LINE, filters=filters))
    at = raw.index(b"\x21\x01", 12)  # the filter's flags in the block header; its one property says the size
    raw[at + 2] = next(bits for bits in range(40) if (2 | (bits & 1)) << (bits // 2 + 11) >= dictionary_bytes)
    size = (raw[12] + 1) * 4
    raw[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(raw[12 : 12 + size - 4]))
    return bytes(raw)


def zeros(count: int, pack: Any) -> bytes:
    """So many zeros, packed without being there."""
    block = bytes(16 * MIB)
    return b"".join(pack.compress(block) for _ in range(count // len(block))) + pack.flush()


def zipped_zeros(count: int) -> bytes:
    block, crc = bytes(16 * MIB), 0
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    # Behind a full flush the packer has forgotten what came before: the next zeros are packed to the same bytes.
    packed = (pack.compress(block) + pack.flush(zlib.Z_FULL_FLUSH)) * (count // len(block)) + pack.flush()
    for _ in range(count // len(block)):
        crc = zlib.crc32(block, crc)
    head = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(packed), count, 5, 0)
    local = b"PK\x03\x04" + head + b"a.txt" + packed
    central = b"PK\x01\x02" + struct.pack("<H", 20) + head + struct.pack("<HHHII", 0, 0, 0, 0, 0) + b"a.txt"
    return local + central + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


def wrong_footer() -> bytes:
    raw = parquet([{"prompt": "a"}])
    return raw[:-30] + b"\xff" * 22 + raw[-8:]


def long_footer() -> bytes:
    raw = parquet([{"prompt": "a"}])
    return raw[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1"


def wide_row_group() -> bytes:
    """Two gigabytes of one value, which a dictionary makes small."""
    file, value = io.BytesIO(), "x" * MIB
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 2048, pa.int32()), pa.array([value]))
    pq.write_table(pa.table({"prompt": column}), file)
    return file.getvalue()


BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "'
    + b"x" * 100
    + b'">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 100) for i in range(8))
    + b"]>"
)
OUTSIDE = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
ROW = '<row r="%s"><c r="A%s" t="inlineStr"><is><t>prompt</t></is></c></row>'


def cells(head: bytes) -> bytes:
    return head + sheet('<row r="1"><c r="A1" t="inlineStr"><is><t>&i;</t></is></c></row>').partition(b"?>")[2]


def with_shared_strings(strings: Iterable[str]) -> bytes:
    """A workbook as Excel writes it: the texts of its cells stand in a table of their own."""
    part = '<Override PartName="/xl/sharedStrings.xml" ContentType="application/vnd.openxmlformats-officedocument.'
    part += 'spreadsheetml.sharedStrings+xml"/></Types>'
    cells = "".join(f'<row r="{n}"><c r="A{n}" t="s"><v>{n - 1}</v></c></row>' for n in (1, 2))
    with zipfile.ZipFile(io.BytesIO(altered_workbook(sheet=sheet(cells)))) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    parts["[Content_Types].xml"] = parts["[Content_Types].xml"].replace(b"</Types>", part.encode())
    file = io.BytesIO(zipped(*parts.items()))
    with (
        zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as whole,
        whole.open("xl/sharedStrings.xml", "w") as table,
    ):
        for text in chain((f"<sst {SPREADSHEET}>",), strings, ("</sst>",)):
            table.write(text.encode())
    return file.getvalue()


def expensive_strings() -> bytes:
    """Long ones that do not shrink like a bomb.

    Memory that this process has used and let go is there for a child of it, too, beside its limit. So the strings are
    made one by one, and each has a character for which Python takes four bytes for every one: 600 MB in all.
    """
    return with_shared_strings(f"<si><t>{os.urandom(185).hex() * 100}😀</t></si>" for _ in range(4000))


def endless_workbook() -> bytes:
    """One that takes minutes: each of its rows is as wide as a sheet can be, and empty."""
    rows = "".join(f'<row r="{number}"><c r="XFD{number}"/></row>' for number in range(2, 60_000))
    return altered_workbook(sheet=sheet(ROW % (1, 1) + rows))


class Hostile:
    """A file, and what is said of it."""

    def __init__(self, name: str, make: Callable[[], bytes], code: str, *words: str, **limits: Any) -> None:
        self.name, self.make, self.code, self.words, self.limits = name, make, code, words, limits


HOSTILE = {
    # zip
    "bomb": Hostile("p.zip", lambda: zipped_zeros(320 * MIB), "unpacked_too_large", "200 times its size"),
    "larger than the limit": Hostile(
        "p.zip",
        lambda: zipped(("a.txt", os.urandom(3 * MIB))),
        "unpacked_too_large",
        "max_unpacked_bytes",
        max_bytes=2 * MIB,
    ),
    "overlapping": Hostile("p.zip", overlapping, "bad_archive", ".txt in it shares its bytes"),
    "nested": Hostile("p.zip", lambda: zipped(("in/b.zip", zipped(("a.txt", b"a")))), "nested_archive", "in/b.zip"),
    "nested, called otherwise": Hostile(
        "p.zip", lambda: zipped(("b.txt", zipped(("a.txt", b"a")))), "nested_archive", "b.txt in it is a zip archive"
    ),
    "tar in zip": Hostile(
        "p.zip", lambda: zipped(("b.dat", tarred(("a", b"a")))), "nested_archive", "b.dat in it is a tar archive"
    ),
    "encrypted": Hostile("p.zip", encrypted, "encrypted", "secret.txt", "without a password"),
    "symlink": Hostile(
        "p.zip", lambda: zipped((member("l.txt", 0o120777), b"/etc/passwd")), "bad_archive", "l.txt in it is a link"
    ),
    "device": Hostile("p.zip", lambda: zipped((member("d", 0o020666), b"")), "bad_archive", "no plain file"),
    "dots": Hostile("p.zip", lambda: zipped(("a/../../b.txt", b"")), "bad_archive", "leads out"),
    "dots of Windows": Hostile("p.zip", lambda: zipped(("..\\b.txt", b"")), "bad_archive", "leads out"),
    "absolute": Hostile("p.zip", lambda: zipped(("/etc/b.txt", b"")), "bad_archive", "/etc/b.txt", "absolute"),
    "drive": Hostile("p.zip", lambda: zipped(("C:\\b.txt", b"")), "bad_archive", "absolute"),
    "NUL": Hostile("p.zip", lambda: zipped(("aQb.txt", b"")).replace(b"aQb", b"a\0b"), "bad_archive", r"a\x00b.txt"),
    "newline": Hostile("p.zip", lambda: zipped(("a\nb.txt", b"")), "bad_archive", r"a\nb.txt", "control character"),
    "long name": Hostile("p.zip", lambda: zipped(("a" * 300, b"")), "bad_archive", "longer than 255"),
    "long path": Hostile("p.zip", lambda: zipped(("/".join(["a" * 200] * 20), b"")), "bad_archive", "2000 bytes"),
    "deep": Hostile("p.zip", lambda: zipped(("a/" * 40 + "b", b"")), "bad_archive", "32 folders deep"),
    "file and folder": Hostile(
        "p.zip", lambda: zipped(("a", b""), ("a/b.txt", b"")), "bad_archive", "file and a folder"
    ),
    "capitals": Hostile("p.zip", lambda: zipped(("a.txt", b""), ("A.TXT", b"")), "bad_archive", "A.TXT", "capitals"),
    "many members": Hostile("p.zip", lambda: many_members(1001), "too_many_files", "files"),
    "millions of members": Hostile(
        "p.zip", lambda: many_members(200_000), "unpack_memory", "MiB", memory_bytes=8 * MIB
    ),
    "wrong size": Hostile(
        "p.zip",
        lambda: patched(zipped(("a.txt", b"x" * 5000)), b"PK\x01\x02", 24, struct.pack("<I", 10)),
        "bad_archive",
        "damaged",
    ),
    "huge size": Hostile(
        "p.zip",
        lambda: patched(zipped(("a.txt", b"x")), b"PK\x01\x02", 24, struct.pack("<I", 2**32 - 2)),
        "unpacked_too_large",
    ),
    "wrong checksum": Hostile(
        "p.zip", lambda: patched(zipped(("a.txt", b"x")), b"PK\x01\x02", 16, b"abcd"), "bad_archive", "damaged"
    ),
    "cut off": Hostile(
        "p.zip",
        lambda: zipped(("a.txt", os.urandom(9000)))[:5000],
        "bad_archive",
        "a zip archive, but damaged or cut off",
    ),
    "method": Hostile(
        "p.zip", lambda: patched(zipped(("a.txt", b"x")), b"PK\x01\x02", 10, b"\x09\0"), "bad_archive", "method 9"
    ),
    "nothing": Hostile("p.zip", lambda: zipped(("__MACOSX/a", b"")), "empty", "no file"),
    "folders of few files": Hostile(
        "p.zip",
        lambda: zipped(*[(f"{number}/" * 30 + "a.txt", b"") for number in range(40)]),
        "too_many_files",
        "1000 files and folders",
    ),
    # tar
    "tar link": Hostile(
        "p.tar",
        lambda: tarred((special("l.txt", tarfile.SYMTYPE, "/etc/passwd"), b"")),
        "bad_archive",
        "l.txt in it is a link",
    ),
    "tar hard link": Hostile(
        "p.tar", lambda: tarred((special("l.txt", tarfile.LNKTYPE, "/etc/passwd"), b"")), "bad_archive", "link"
    ),
    "tar device": Hostile(
        "p.tar", lambda: tarred((special("d", tarfile.CHRTYPE), b"")), "bad_archive", "no plain file"
    ),
    "tar pipe": Hostile("p.tar", lambda: tarred((special("d", tarfile.FIFOTYPE), b"")), "bad_archive", "no plain file"),
    "tar dots": Hostile("p.tar", lambda: tarred(("../b.txt", b"")), "bad_archive", "leads out"),
    "tar absolute": Hostile("p.tar", lambda: tarred(("/b.txt", b"")), "bad_archive", "absolute"),
    "tar no name": Hostile("p.tar", lambda: tarred(("", b"hidden"), ("a.txt", b"a")), "bad_archive", "without a name"),
    "tar newline": Hostile("p.tar", lambda: tarred(("a\nb.txt", b"")), "bad_archive", "control character"),
    "tar twice": Hostile("p.tar", lambda: tarred(("a.txt", b""), ("./a.txt", b"")), "bad_archive", "twice"),
    "tar sparse": Hostile(
        "p.tar",
        lambda: tarred((special("s", tarfile.GNUTYPE_SPARSE), b""), form=tarfile.GNU_FORMAT),
        "bad_archive",
        "sparse",
    ),
    "tar nested": Hostile("p.tar", lambda: tarred(("b.tgz", b"x")), "nested_archive", "b.tgz"),
    "tar claims": Hostile("p.tar", lambda: tar_that_claims(10**10), "unpacked_too_large"),
    "tar in the middle": Hostile("p.tar", lambda: tarred(("a.txt", b"x" * 5000))[:2000], "bad_archive", "cut off"),
    "tar without its end": Hostile(
        "p.tar", lambda: tarred(("a.txt", b"x" * 512))[:1024], "bad_archive", "its end is missing"
    ),
    "tar behind its end": Hostile(
        "p.tar.gz", lambda: gzip.compress(tarred(("a.txt", b"x")))[:-9], "bad_archive", "cut off"
    ),
    "tar bomb": Hostile(
        "p.tar.bz2",
        lambda: zeros(SMALL_BOMB_BYTES, _Tarred(SMALL_BOMB_BYTES, bz2.BZ2Compressor())),
        "unpacked_too_large",
        "200 times",
    ),
    # streams
    "xz bomb": Hostile(
        "p.jsonl.xz", lambda: zeros(SMALL_BOMB_BYTES, lzma.LZMACompressor(preset=0)), "unpacked_too_large", "200 times"
    ),
    "bz2 bomb": Hostile(
        "p.jsonl.bz2", lambda: zeros(SMALL_BOMB_BYTES, bz2.BZ2Compressor()), "unpacked_too_large", "200 times"
    ),
    "zst bomb": Hostile(
        "p.jsonl.zst",
        lambda: zeros(320 * MIB, zstandard.ZstdCompressor().compressobj()),
        "unpacked_too_large",
        "200 times",
    ),
    "gz bomb": Hostile(
        "p.jsonl", lambda: zeros(SMALL_BOMB_BYTES, zlib.compressobj(wbits=31)), "unpacked_too_large", "200 times"
    ),
    "zst window": Hostile("p.jsonl.zst", long_window, "bad_archive", "128 MiB", "--long"),
    "xz dictionary": Hostile("p.jsonl.xz", lambda: xz_that_wants(1024 * MIB), "unpack_memory", "memory"),
    "zst cut off": Hostile("p.jsonl.zst", lambda: PACKERS[".zst"](LINE * 999)[:-4], "bad_archive", "cut off"),
    "xz cut off": Hostile("p.jsonl.xz", lambda: lzma.compress(LINE * 999)[:-4], "bad_archive", "cut off"),
    "bz2 damaged": Hostile(
        "p.jsonl.bz2", lambda: patched(bz2.compress(LINE), b"BZh", 20, b"\0\0\0"), "bad_archive", "damaged"
    ),
    "gz in xz": Hostile("p.jsonl.xz", lambda: lzma.compress(gzip.compress(LINE)), "nested_archive", "packed with gzip"),
    "zip in zst": Hostile(
        "p.jsonl.zst", lambda: PACKERS[".zst"](zipped(("a", b""))), "nested_archive", "a zip archive"
    ),
    # workbooks
    "entities": Hostile("p.xlsx", lambda: altered_workbook(sheet=cells(BOMB)), "bad_archive", SHEET, "XML entities"),
    "entities in UTF-16": Hostile(
        "p.xlsx",
        lambda: altered_workbook(sheet=cells(BOMB).decode().replace("1.0", '1.0" encoding="utf-16').encode("utf-16")),
        "bad_archive",
        "XML entities",
    ),
    "entities from outside": Hostile(
        "p.xlsx", lambda: altered_workbook(sheet=cells(OUTSIDE)), "bad_archive", "XML entities"
    ),
    "entities in the book": Hostile(
        "called.csv", lambda: altered_workbook(book=OUTSIDE), "bad_archive", "xl/workbook.xml"
    ),
    "no such row": Hostile(
        "p.xlsx",
        lambda: altered_workbook(sheet=sheet(ROW % (1, 1) + ROW % (4 * 10**9, 4 * 10**9))),
        "bad_archive",
        "1048576",
    ),
    "strings": Hostile("p.xlsx", expensive_strings, "unpack_memory", "memory", memory_bytes=16 * MIB),
    "workbook bomb": Hostile(
        "p.xlsx", lambda: altered_workbook(sheet=sheet(" " * SMALL_BOMB_BYTES)), "unpacked_too_large", "200 times"
    ),
    "workbook cut off": Hostile(
        "p.xlsx", lambda: workbook(["prompt"])[:2000], "bad_archive", "an Excel workbook, but damaged"
    ),
    "no XML": Hostile("p.xlsx", lambda: altered_workbook(sheet=b"<worksheet><"), "bad_archive", "damaged"),
    "no workbook": Hostile(
        "p.xlsx", lambda: zipped(("[Content_Types].xml", b""), ("word/document.xml", b"")), "bad_archive", "no workbook"
    ),
    "empty workbook": Hostile("p.xlsx", workbook, "empty", "no sheet"),
    "wide rows": Hostile("p.xlsx", endless_workbook, "unpack_timeout", "took longer than 1 s", timeout_s=1.0),
    # Parquet
    "footer": Hostile("p.parquet", wrong_footer, "bad_archive", "a Parquet file, but damaged"),
    "footer's size": Hostile("p.parquet", long_footer, "bad_archive", "damaged"),
    "row group": Hostile("p.parquet", wide_row_group, "unpack_memory", "memory", memory_bytes=150 * MIB),
    "Parquet cut off": Hostile("p.parquet", lambda: parquet([{"prompt": "a"}])[:100], "bad_archive", "damaged"),
}


class _Tarred:
    """Packs zeros as the content of the one member of a tar archive."""

    def __init__(self, size: int, packer: bz2.BZ2Compressor) -> None:
        info = tarfile.TarInfo("a.txt")
        info.size = size
        self._head = info.tobuf()
        self._packer = packer

    def compress(self, block: bytes) -> bytes:
        head, self._head = self._head, b""
        return self._packer.compress(head + block)

    def flush(self) -> bytes:
        return self._packer.compress(bytes(1024)) + self._packer.flush()
