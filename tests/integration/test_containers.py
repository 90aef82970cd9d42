"""Archives, packed files, workbooks and Parquet: what becomes of them, and what hostile ones cost: themselves alone."""

from __future__ import annotations

import ast
import bz2
import ctypes
import errno
import gzip
import lzma
import os
import re
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from container_support import HOSTILE, LINE, MIB, PACKERS, parquet, tarred, with_shared_strings, workbook, zipped
from test_architecture import MODULES, imported

from obatchd import frames
from obatchd.errors import DropRefused
from obatchd.installation import how_to_add
from obatchd.jobs.containers import archives, limits, tables, unpacker
from obatchd.jobs.containers.kinds import CONTAINERS
from obatchd.jobs.containers.messages import Block, Member, Order, Refused, Unpacked, from_unpacker
from obatchd.jobs.containers.unpacked import conclude, contents
from obatchd.jobs.containers.unpacker import Unpacker
from obatchd.jobs.formats import RecordRules, needs_unpacking, parse_request, read_entries, request_file
from obatchd.jobs.model import FILE_ENDINGS
from obatchd.settings.tables.spool import InboxSettings

Content = bytes | dict[str, bytes]
PIXEL = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


class Drop:
    """A drop in the directory of its job."""

    def __init__(self, directory: Path, name: str, content: Content) -> None:
        self.directory = directory
        self.name = name
        self.input = directory / "input"
        directory.mkdir()
        if isinstance(content, bytes):
            self.input.write_bytes(content)
            return
        for file, inside in content.items():
            path = self.input / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(inside)

    def unpack(self, **settings: Any) -> Unpacked:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            found = Unpacker(self._order(settings), theirs).run()
        conclude(self.directory, found)
        return found

    def unpack_in_own_process(self, **settings: Any) -> None:
        """As the daemon does. A child of this process may use, beside its limit, what is free of this one's memory."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = get_context("spawn").Process(target=unpacker.main, args=(theirs, self._order(settings)))
                process.start()
            answer = frames.receive(ours, from_unpacker)
            process.join()
        if isinstance(answer, Refused):
            raise DropRefused(answer.message, code=answer.code)

    def _order(self, settings: dict[str, Any]) -> Order:
        given = {"max_bytes": 1024 * MIB, "keep_free_bytes": 0, "timeout_s": 20.0, "memory_bytes": 256 * MIB} | settings
        return Order(str(self.directory), self.name, **given)

    def read(self, rules: RecordRules = RecordRules()) -> Reading:  # noqa: B008
        if needs_unpacking(contents(self.input, self.name)):
            self.unpack()
        return Reading(self, rules)


class Reading:
    """The requests of a drop."""

    def __init__(self, drop: Drop, rules: RecordRules) -> None:
        entries = list(read_entries(drop.input, drop.name, InboxSettings(), rules=rules, size_bytes=1))
        content = request_file(drop.input).read_bytes()
        good = [entry for entry in entries if entry.refusal is None]
        requests = [parse_request(content[entry.offset : entry.offset + entry.length]) for entry in good]
        self.prompts = [request.prompt for request in requests]
        self.ids = [entry.id for entry in good]
        self.images = [request.images for request in requests]
        self.refusals = [entry.refusal.message for entry in entries if entry.refusal is not None]
        self.notes = contents(drop.input, drop.name).notes


Make = Callable[..., Drop]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def making(name: str, content: Content) -> Drop:
        return Drop(tmp_path / f"job-{len(list(tmp_path.iterdir()))}", name, content)

    return making


# What people drop.


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_files_are_read_under_the_name_without_the_packing(make: Make, ending: str) -> None:
    found = make(f"p.jsonl{ending}", PACKERS[ending](LINE * 3)).read()
    assert (found.prompts, found.refusals) == (["Say hi"] * 3, [])
    assert make(f"p.csv{ending}", PACKERS[ending](b"id,prompt\n1,a\n")).read().prompts == ["a"]
    assert make(f"p.TSV{ending.upper()}", PACKERS[ending](b"id\tprompt\n1\ta,b\n")).read().prompts == ["a,b"]
    assert make(f"p.txt{ending}", PACKERS[ending](b"one text")).read().prompts == ["one text"]
    if ending == ".zst":  # pzstd puts frames between that hold no content
        skipped = b"\x50\x2a\x4d\x18\x04\0\0\0size"
        assert make("p.jsonl.zst", (skipped + PACKERS[ending](LINE)) * 2).read().prompts == ["Say hi"] * 2
    twice = PACKERS[ending](LINE) + PACKERS[ending](LINE)  # as cat makes of two of them
    assert make(f"p.jsonl{ending}", twice).read().prompts == ["Say hi"] * 2


@pytest.mark.parametrize("ending", PACKERS)
def test_what_is_packed_is_told_by_its_first_bytes(make: Make, ending: str) -> None:
    assert make("p.jsonl", PACKERS[ending](LINE)).read().prompts == ["Say hi"]
    assert make("p.jsonl.xz" if ending != ".xz" else "p.jsonl.zst", PACKERS[ending](LINE)).read().prompts == ["Say hi"]


@pytest.mark.parametrize(
    "name", ["p.zip", "p.tar", "p.tar.gz", "p.tgz", "p.tar.xz", "p.txz", "p.tar.bz2", "p.tbz2", "p.tar.zst", "p.tzst"]
)
def test_an_archive_is_the_folder_that_was_packed(make: Make, name: str) -> None:
    files = {
        "job.toml": b'system_message = "Be short."',
        "a.jsonl": LINE,
        "b/c.txt": b"a text",
        "b/d.csv": b"prompt\nrow\n",
        "pictures/x.png": PIXEL,
        "e.jsonl": b'{"prompt": "see", "images": ["pictures/x.png"]}\n',
        "__MACOSX/._a.jsonl": b"\0",
        ".DS_Store": b"\0",
        "b/Thumbs.db": b"\0",
        "desktop.ini": b"[x]",
    }

    def packed(prefix: str) -> bytes:
        members = [(prefix + file, content) for file, content in files.items()]
        if name.endswith("zip"):
            return zipped(*members)
        packer = next((pack for end, pack in PACKERS.items() if name.replace(".t", ".").endswith(end)), bytes)
        return packer(tarred(*members))

    dropped = make("p", files).read()
    assert dropped.prompts == ["Say hi", "see", "a text", "row"]
    for prefix in ("", "p/", "./p/q/"):
        drop = make(name, packed(prefix))
        found = drop.read()
        assert (found.prompts, found.ids, found.refusals) == (dropped.prompts, dropped.ids, [])
        assert found.images == dropped.images != [[]] * 4
        assert (contents(drop.input, name).path / "job.toml").exists()


def test_an_archive_of_one_file_is_that_file(make: Make) -> None:
    assert make("p.zip", zipped(("prompts.jsonl", LINE))).read().ids == ["z"]
    one = make("p.tar.gz", gzip.compress(tarred(("note.txt", b"text")))).read()
    assert (one.prompts, one.ids) == (["text"], [None])
    assert make("p.zip", zipped(("book.xlsx", workbook(["prompt"], ["hi"])))).read().prompts == ["hi"]
    assert make("p.zip", zipped(("folder\\a.jsonl", LINE), ("folder\\b.txt", b"b"))).read().prompts == ["Say hi", "b"]
    assert make("p.zip", zipped(("folder\\", b""), ("folder\\a.jsonl", LINE))).read().prompts == ["Say hi"]


@pytest.mark.parametrize("name", ["p.xlsx", "called.csv", "P.XLSM", "p.jsonl"])
def test_a_workbook_is_a_table(make: Make, name: str) -> None:
    rows = [["id", "prompt", "note"], ["a", 'Say "hi", twice\nand go', 1.0], [], [7, "Ä", 2.5], ["c", "short"]]
    found = make(name, workbook(*rows)).read()
    assert (found.prompts, found.ids) == (['Say "hi", twice\nand go', "Ä", "short"], ["a", "7", "c"])
    assert found.refusals == []


def test_values_of_a_workbook_are_texts_as_they_are_seen(make: Make) -> None:
    import datetime

    row = [True, 3.0, 0.25, datetime.datetime(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, 4), None, "x"]
    drop = make("p.xlsx", workbook([*"abcdefg"], row))
    found = drop.read(RecordRules("{a}|{b}|{c}|{d}|{e}|{f}|{g}"))
    assert found.prompts == ["TRUE|3|0.25|2026-01-02|2026-01-02 03:04:00||x"]


def test_a_workbook_of_excel_has_its_texts_in_a_table(make: Make) -> None:
    strings = "<si><t>prompt</t></si><si><r><t>Say </t></r><r><t>hi</t></r></si>"
    assert make("p.xlsx", with_shared_strings([strings])).read().prompts == ["Say hi"]


def test_other_sheets_of_a_workbook_are_named_and_not_read(make: Make) -> None:
    found = make("p.xlsx", workbook(["prompt"], ["hi"], Codes=[["x"]], Empty=[])).read()
    assert found.prompts == ["hi"]
    assert found.notes == (
        'Only the sheet "Prompts" of the workbook is read, not "Codes": save each as a file of its own.',
    )
    assert make("p.xlsx", workbook(title="Cover", Data=[["prompt"], ["hi"]])).read().notes == ()


@pytest.mark.parametrize("name", ["p.parquet", "called.csv"])
def test_rows_of_parquet_are_lines(make: Make, name: str) -> None:
    chat = [{"role": "user", "content": "hello"}]
    assert make(name, parquet([{"id": "a", "prompt": "one"}, {"id": "b", "prompt": "two"}])).read().ids == ["a", "b"]
    assert make(name, parquet([{"id": 7, "messages": chat}])).read().ids == ["7"]
    rows = [{"q": "x", "n": float("nan"), "b": b"\xff", "l": [1, 2]}]
    assert make(name, parquet(rows)).read(RecordRules("{q} {n} {b} {l}")).refusals == ['line 1: the field "n" is null']
    assert make(name, parquet(rows)).read(RecordRules("{q} {b} {l}")).prompts == ["x /w== [1,2]"]


def test_files_of_a_folder_are_unpacked_each_for_itself(make: Make) -> None:
    files = {
        "a.jsonl": LINE,
        "b.parquet": parquet([{"prompt": "in Parquet"}]),
        "c/d.xlsx": workbook(["prompt"], ["in Excel"]),
        "e.txt.zst": PACKERS[".zst"](b"in zst"),
        "f.parquet": b"PAR1\x15 and no more",
        "g.xlsx": b"nothing",
        "h.csv": workbook(["prompt"], ["x"]),
        "i.zip": zipped(("a.txt", b"a")),
        "~$d.xlsx": b"lock",
    }
    drop = make("p", files)
    found = drop.read()
    assert found.prompts == ["Say hi", "in Parquet", "in zst", "in Excel"]
    assert found.ids == ["z", None, "e", None]
    for reason, words in zip(
        found.refusals,
        (
            "f.parquet: it is a Parquet file, but damaged",
            "g.xlsx: its first bytes are not",
            "h.csv: is an Excel workbook",
            "i.zip: it is an archive; unpack",
        ),
        strict=True,
    ):
        assert reason.startswith(words)
    noted = make("p", {"a.xlsx": workbook(["prompt"], ["a"], Codes=[["x"]]), "b.txt": b"b"})
    assert [note[:31] for note in noted.read().notes] == ['a.xlsx: Only the sheet "Prompts']
    inside = make("p.zip", zipped(*[(name, content) for name, content in files.items() if not name.endswith("zip")]))
    assert inside.read().prompts == found.prompts
    assert inside.read().refusals == found.refusals[:-1]
    assert (drop.input / "c/d.xlsx").read_bytes().startswith(b"PK")


# Hostile ones.


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_with_words(make: Make, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    for module in (limits, tables):  # so that bombs are made soon
        monkeypatch.setattr(module, "RATIO_FROM_BYTES", 16 * MIB)
    for module in (limits, archives):
        monkeypatch.setattr(module, "MEMBERS", 1000)
    hostile = HOSTILE[case]
    drop = make(hostile.name, hostile.make())
    assert needs_unpacking(contents(drop.input, drop.name))
    unpack = drop.unpack_in_own_process if hostile.code == "unpack_memory" else drop.unpack
    with pytest.raises(DropRefused) as refused:
        unpack(**hostile.limits)
    assert (refused.value.code, [word for word in hostile.words if word not in refused.value.message]) == (
        hostile.code,
        [],
    )
    written = sum(path.stat().st_size for path in (drop.directory / "unpacked").rglob("*") if path.is_file())
    assert written <= min(hostile.limits.get("max_bytes", 1024 * MIB), limits.RATIO_FROM_BYTES)
    assert sorted(path.name for path in drop.directory.iterdir()) == ["input", "unpacked"]
    assert "Error" not in refused.value.message and "\n" not in refused.value.message


# Every format, also one that is added.

OWN = {
    f"{plain}{packed}"
    for plain in (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".md")
    for packed in ("", ".gz")
}
BOMBS = {
    "zip": "bomb",
    "tar": "tar bomb",
    "xlsx": "workbook bomb",
    "parquet": "row group",
    "gz": "gz bomb",
    "zst": "zst bomb",
    "xz": "xz bomb",
    "bz2": "bz2 bomb",
}
DAMAGED = {
    "zip": "cut off",
    "tar": "tar in the middle",
    "xlsx": "workbook cut off",
    "parquet": "footer",
    "gz": "tar behind its end",
    "zst": "zst cut off",
    "xz": "xz cut off",
    "bz2": "bz2 damaged",
}
SMALL: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zip": ("p.zip", lambda: zipped(("a.txt", b"a"))),
    "tar": ("p.tar", lambda: tarred(("a.txt", b"a"))),
    "xlsx": ("p.xlsx", lambda: workbook(["prompt"], ["a"])),
    "parquet": ("p.parquet", lambda: parquet([{"prompt": "a"}])),
    "gz": ("p.txt", lambda: gzip.compress(b"a")),
    "zst": ("p.txt.zst", lambda: PACKERS[".zst"](b"a")),
    "xz": ("p.txt.xz", lambda: lzma.compress(b"a")),
    "bz2": ("p.txt.bz2", lambda: bz2.compress(b"a")),
}


def test_every_ending_is_read_in_constant_memory_or_by_a_confined_child() -> None:
    """A format that is added goes into the table of containers, or is one that the daemon reads piece by piece."""
    confined_ones = {ending for container in CONTAINERS for ending in container.endings}
    assert [ending for ending in FILE_ENDINGS if ending not in OWN and not ending.endswith(tuple(confined_ones))] == []
    libraries = {"zipfile", "tarfile", "lzma", "bz2", "openpyxl", "pyarrow", "zstandard", "xml"}
    using = {module for module, tree in MODULES.items() if libraries & set(outside(tree))}
    using = {module for module in using if not module.startswith("client.")}  # they run in their user's own program
    writers = {
        "burnin.report.bundle",
        "results.arrow",
        "results.export",
        "results.workbook",
        "backup.archive",
        "backup.making",
    }
    writers.add("backup.restoring")  # it reads what its operator wrote with them, and no stranger's drop
    readers = {f"jobs.containers.{container.reader.split('.')[0]}" for container in CONTAINERS}
    assert using - writers == readers | {"jobs.containers.unpacker"}, "the unpacker knows the words of their errors"
    functions = {f"jobs.containers.{container.reader}" for container in CONTAINERS}
    assert [module for module, tree in MODULES.items() if functions & set(imported(tree))] == []


def outside(tree: ast.AST) -> Iterator[str]:
    """Libraries that are imported anywhere below ``tree``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_every_kind_has_a_bomb_and_a_damaged_file_among_the_hostile_ones() -> None:
    kinds = {container.name for container in CONTAINERS}
    assert kinds == set(BOMBS) == set(DAMAGED) == set(SMALL)
    for kind, cases, codes in (
        *((kind, BOMBS, ("unpacked_too_large", "unpack_memory")) for kind in kinds),
        *((kind, DAMAGED, ("bad_archive",)) for kind in kinds),
    ):
        assert HOSTILE[cases[kind]].code in codes


def grow(file: Any, name: str, send: Any) -> None:
    hoard = []
    while True:
        hoard.append(bytearray(16 * MIB))


def sleep(file: Any, name: str, send: Any) -> None:
    time.sleep(60)


def flood(file: Any, name: str, send: Any) -> None:
    send(Member())
    while True:
        send(Block(bytes(MIB)))


def many(file: Any, name: str, send: Any) -> None:
    for number in range(limits.MEMBERS + 1):
        send(Member(b".%d" % number))


def escape(file: Any, name: str, send: Any) -> None:
    send(Member(b"a/../../../escaped"))
    send(Block(b"x"))


def connect(file: Any, name: str, send: Any) -> None:
    socket.socket().close()  # where there is a network, nothing is wrong with the file
    send(Member())


def reads_nothing(file: Any, name: str, send: Any) -> None:
    raise KeyError("'NoneType' object")


MISBEHAVIOUR: list[tuple[Callable[..., None], str, str]] = [
    (grow, "unpack_memory", "needs more than 64 MiB of memory (unpack_memory_bytes in [inbox])"),
    (sleep, "unpack_timeout", "took longer than 0.2 s (unpack_timeout_s in [inbox])"),
    (lambda *_: ctypes.string_at(0), "unpack_crash", "crashed (signal 11)"),
    (flood, "unpacked_too_large", "max_unpacked_bytes (3145728)"),
    (many, "too_many_files", ""),
    (escape, "bad_archive", ""),
    (connect, "bad_archive", "damaged"),
    (reads_nothing, "bad_archive", "damaged or cut off"),
]


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("work", "code", "words"), MISBEHAVIOUR)
def test_the_reader_of_every_kind_is_held_to_the_limits(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str, work: Callable[..., None], code: str, words: str
) -> None:
    [container] = [container for container in CONTAINERS if container.name == kind]
    module, _, function = container.reader.rpartition(".")
    name, content = SMALL[kind]
    drop = make(name, content())
    monkeypatch.setattr(f"obatchd.jobs.containers.{module}.{function}", work)
    monkeypatch.setattr(limits, "MEMBERS", 1000)
    with pytest.raises(DropRefused) as refused:
        drop.unpack(timeout_s=0.2 if work is sleep else 20, memory_bytes=64 * MIB, max_bytes=3 * MIB)
    assert refused.value.code == code
    assert words in refused.value.message
    assert "KeyError" not in refused.value.message and "NoneType" not in refused.value.message
    assert not list(drop.directory.parent.glob("**/escaped"))


def test_a_disk_without_room_is_told_before_it_is_full(make: Make) -> None:
    drop = make("p.zip", zipped(("a.txt", os.urandom(MIB))))
    with pytest.raises(OSError, match="can spare") as error:
        drop.unpack(keep_free_bytes=2**62)
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in (drop.directory / "unpacked").rglob("*.txt") if path.stat().st_size] == []


def test_a_library_that_is_not_installed_is_named_with_the_words_that_install_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, make_content = SMALL["parquet"]
    content = make_content()  # with the library
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for drop in (make(name, content), make("p", {name: content, "a.txt": b"a"})):
        with pytest.raises(DropRefused) as refused:
            drop.unpack()
        assert refused.value.code == "library_missing"
        assert refused.value.message.endswith(how_to_add("pyarrow"))


def test_every_library_of_a_kind_but_pyarrow_is_always_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    always = {re.split(r"\W", dependency)[0] for dependency in project["dependencies"]}
    libraries = {container.library.partition(".")[0] for container in CONTAINERS if container.library}
    assert libraries - always == {"pyarrow"}


def test_kinds_that_are_not_read_are_named_by_their_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "input"
    for content, words in {
        b"7z\xbc\xaf\x27\x1c..": "a 7-Zip archive",
        b"Rar!\x1a\x07\0": "a RAR archive",
        b"%PDF-1.7": "a PDF document",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Excel or Word file",
        PIXEL: "a PNG picture",
        b"SQLite format 3\0": "an SQLite",
    }.items():
        path.write_bytes(content)
        assert not needs_unpacking(contents(path, "p.jsonl"))
        with pytest.raises(DropRefused, match=f"p.jsonl is {words}.*, by its first bytes; ") as refused:
            list(read_entries(path, "p.jsonl", InboxSettings()))
        assert refused.value.code == "format"
    for text in (b"ORC is a format", b"PAR1 is another", b"BZh9 too", b"GIF8, too", b"MZ"):
        path.write_bytes(text)
        assert not needs_unpacking(contents(path, "p.txt"))
        assert len(list(read_entries(path, "p.txt", InboxSettings()))) == 1
    path.write_bytes(gzip.compress(tarred(("a.txt", b"a"))))
    with pytest.raises(DropRefused, match=r"p\.jsonl\.gz is a tar archive"):
        list(read_entries(path, "p.jsonl.gz", InboxSettings()))


def test_an_attempt_that_was_cut_short_is_made_again(make: Make) -> None:
    drop = make("p.zip", zipped(("a.jsonl", LINE), ("b.txt", b"b")))
    (drop.directory / "unpacked" / "tree").mkdir(parents=True)
    (drop.directory / "unpacked" / "tree" / "torn.txt").write_text("torn")
    (drop.directory / "unpacked.json.new").write_text("{")
    assert needs_unpacking(contents(drop.input, drop.name))
    assert drop.read().prompts == ["Say hi", "b"]
    assert not needs_unpacking(contents(drop.input, drop.name))
