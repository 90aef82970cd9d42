"""A folder of files as one drop: what is read of it, in which order, and what is said of the rest."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from obatchd.errors import DropRefused
from obatchd.jobs.formats import folder_settings, parse_request, read_entries, read_me_files, recognise, request_file
from obatchd.jobs.formats.recognise import Format
from obatchd.jobs.model import Entry
from obatchd.settings.tables.spool import InboxSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder drop."""
    path = tmp_path / "input"
    path.mkdir()
    return path


def put(folder: Path, name: str, text: str, **more: Any) -> None:
    """A file with one request."""
    (folder / name).write_bytes(json.dumps({"prompt": text, **more}, indent=2).encode())


def read(folder: Path, **limits: Any) -> list[Entry]:
    return list(read_entries(folder, "drop", InboxSettings(**limits)))


def prompts(folder: Path, entries: list[Entry]) -> list[str]:
    content = request_file(folder).read_bytes()
    good = [entry for entry in entries if entry.refusal is None]
    return [parse_request(content[entry.offset : entry.offset + entry.length]).prompt for entry in good]


def refusals(entries: list[Entry]) -> dict[int, str]:
    return {entry.line: entry.refusal.message for entry in entries if entry.refusal is not None}


def test_files_are_requests_in_name_order_called_by_their_stems(folder: Path) -> None:
    for name in ("b.json", "a.json", "10.json", "9.json", "C.JSON"):
        put(folder, name, f"prompt of {name}")
    entries = read(folder)
    assert recognise(folder, "drop") is Format.FOLDER
    assert [entry.id for entry in entries] == ["10", "9", "C", "a", "b"]
    assert [entry.line for entry in entries] == [1, 2, 3, 4, 5]
    assert prompts(folder, entries)[0] == "prompt of 10.json"


def test_an_id_of_their_own_wins(folder: Path) -> None:
    put(folder, "a.json", "x", id="own")
    put(folder, "b.json", "x", custom_id=7)
    put(folder, "c.json", "x", id=None)
    put(folder, "d.json", "x", id="")
    entries = read(folder)
    content = request_file(folder).read_bytes()
    parsed = [parse_request(content[e.offset : e.offset + e.length]).id for e in entries]
    assert [entry.id for entry in entries] == parsed == ["own", "7", "c", "d"]


def test_a_file_may_hold_any_format_and_be_packed(folder: Path) -> None:
    put(folder, "1.json", "one")
    (folder / "2.jsonl").write_bytes(b'{"prompt": "two"}\n\n{"prompt": "three", "id": "t"}\n')
    (folder / "3.json").write_bytes(b'[{"prompt": "four"}, {"prompt": "five"}]')
    (folder / "4.json.gz").write_bytes(gzip.compress(b'{"prompt": "six"}'))
    (folder / "5.ndjson.gz").write_bytes(gzip.compress(b'{"prompt": "seven"}\n'))
    entries = read(folder)
    assert prompts(folder, entries) == ["one", "two", "three", "four", "five", "six", "seven"]
    assert [entry.id for entry in entries] == ["1", None, "t", None, None, "4", None]
    assert [entry.line for entry in entries] == list(range(1, 8))


def test_settings_hidden_and_temporary_files_are_no_requests(folder: Path) -> None:
    put(folder, "a.json", "x")
    (folder / "__MACOSX").mkdir()
    for name in (
        "job.toml", "config.toml", ".hidden.json", "b.json~", "c.json.part", "d.tmp", "e.json.filepart", "Thumbs.db",
        "desktop.ini", "__MACOSX/._a.json", "~$f.csv",
    ):  # fmt: skip
        (folder / name).write_text("")
    assert [entry.id for entry in read(folder)] == ["a"]


def test_what_cannot_be_read_fails_alone_and_by_its_name(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"prompt": "secret"}')
    (folder / "a_link.json").symlink_to(secret)
    (folder / "b_link").symlink_to(tmp_path)
    os.mkfifo(folder / "c_pipe.json")
    (folder / "d_text.docx").write_text("hello")
    (folder / "e_empty.json").write_text("")
    (folder / "f_latin.csv").write_bytes("prompt\nGrüße\n".encode("latin-1"))
    (folder / "g_none.json.gz").write_bytes(b"{}")
    (folder / "h_bad.json").write_text('{"prompt": }')
    (folder / "i_lines.jsonl").write_text('{"prompt": "good"}\nbad\n')
    put(folder, "j.json", "last")
    entries = read(folder)
    said = refusals(entries)
    assert prompts(folder, entries) == ["good", "last"]
    assert len(entries) == 11
    for line, words in {
        1: "a_link.json: it is a link",
        2: "b_link: it is a link",
        3: "c_pipe.json: it is not a regular file",
        4: "d_text.docx: it is none of our formats",
        5: "e_empty.json: is empty",
        6: "f_latin.csv: is not UTF-8 (line 2): save it as UTF-8, or",
        7: "g_none.json.gz: cannot be read",
        8: "h_bad.json, the object: it is not JSON",
        10: "i_lines.jsonl, line 2: it is not JSON",
    }.items():
        assert said[line].startswith(words)
    assert "secret" not in request_file(folder).read_text()


def test_a_file_swapped_for_a_link_after_the_look_is_not_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of a folder may keep it open, and so change it while it is read."""
    (tmp_path / "secret.json").write_text('{"prompt": "secret"}')
    (folder / "a.json").symlink_to(tmp_path / "secret.json")
    monkeypatch.setattr("obatchd.jobs.formats.unpack.folder_files", lambda _: [(Path("a.json"), None)])
    [entry] = read(folder)
    assert entry.refusal is not None
    assert entry.refusal.code == "bad_file"


def test_names_that_are_not_utf8_are_escaped(folder: Path) -> None:
    path = os.fsencode(folder) + b"/caf\xe9.json"
    with open(path, "wb") as file:
        file.write(b'{"prompt": "x"}')
    with open(os.fsencode(folder) + b"/d\xe9j\n.json", "wb") as file:
        file.write(b"{")
    entries = read(folder)
    assert entries[0].id == "caf\\xe9"
    assert refusals(entries)[2].startswith("d\\xe9j\n.json, the object")
    assert json.dumps(refusals(entries)[2]).isascii()


def test_folders_in_the_folder_are_read_behind_its_files(folder: Path) -> None:
    for inside in ("b/c", "a", ".hidden", "__MACOSX", "@eaDir"):
        (folder / inside).mkdir(parents=True)
        put(folder / inside, "one.json", f"in {inside}")
    put(folder, "z.json", "of the folder itself")
    put(folder, "one.json", "also")
    (folder / "a" / "job.toml").write_text("")
    (folder / "b" / "Thumbs.db").write_bytes(b"\0")
    (folder / "a" / "link").symlink_to(folder)
    entries = read(folder)
    assert prompts(folder, entries) == ["also", "of the folder itself", "in a", "in b/c"]
    assert [e.id for e in entries if e.refusal is None] == ["one.json", "z", "a/one.json", "b/c/one.json"]
    assert list(refusals(entries).values()) == [
        "a/job.toml: it counts only directly in the dropped folder; move it there",
        "a/link: it is a link; links are not followed",
    ]


def test_a_folder_swapped_for_a_link_after_the_look_is_not_entered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    put(tmp_path / "elsewhere", "a.json", "secret")
    (folder / "in").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr("obatchd.jobs.formats.unpack.folder_files", lambda _: [(Path("in/a.json"), None)])
    [entry] = read(folder)
    assert entry.refusal is not None and entry.refusal.code == "bad_file"


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of another user's, who has closed it."""
    (folder / "closed").mkdir()
    put(folder / "closed", "a.json", "never")
    put(folder, "b.json", "x")
    real = os.open

    def refusing(path: Any, *arguments: Any, **keywords: Any) -> int:
        if os.fspath(path) == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refusing)
    entries = read(folder)
    assert prompts(folder, entries) == ["x"]
    assert refusals(entries) == {2: "closed: it is a folder that cannot be read"}


def test_folders_in_one_another_have_an_end(folder: Path) -> None:
    deep = folder / "/".join("d" * 40)
    deep.mkdir(parents=True)
    put(deep, "a.json", "never")
    put(folder, "a.json", "x")
    entries = read(folder)
    assert prompts(folder, entries) == ["x"]
    assert ["32 folders deep" in reason for reason in refusals(entries).values()] == [True]


def test_a_read_me_file_is_a_prompt_only_where_there_is_nothing_else(folder: Path) -> None:
    (folder / "README.md").write_text("How to use")
    assert prompts(folder, read(folder)) == ["How to use"]
    put(folder, "a.json", "x")
    (folder / "LICENSE").write_text("MIT")
    assert prompts(folder, read(folder)) == ["x"]
    assert read_me_files(folder) == [Path("LICENSE"), Path("README.md")]


def test_a_folder_without_requests_is_refused(folder: Path) -> None:
    (folder / "job.toml").write_text('model = "m"')
    with pytest.raises(DropRefused) as refused:
        read(folder)
    assert refused.value.code == "no_requests"


def test_a_bomb_among_the_files_ends_the_reading(folder: Path) -> None:
    put(folder, "a.json", "x")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"\n" * 10_000_000))
    put(folder, "c.json", "never")
    entries = read(folder, max_unpacked_bytes=50_000)
    assert prompts(folder, entries) == ["x"]
    [message] = refusals(entries).values()
    assert message.startswith("b.jsonl.gz: ")
    assert "max_unpacked_bytes (50000)" in message


def test_the_limit_holds_for_all_files_together(folder: Path) -> None:
    for number in range(20):
        put(folder, f"{number:02}.json", "x" * 900)
    entries = read(folder, max_unpacked_bytes=10_000)
    assert len(prompts(folder, entries)) == 10
    assert len(refusals(entries)) == 1


def test_a_file_nobody_may_read_fails_alone() -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "input"
        folder.mkdir()
        for name in ("a.json", "b.json"):
            put(folder, name, name)
        (folder / "a.json").chmod(0)
        Path(directory).chmod(0o777)
        with unprivileged():
            entries = read(folder)
            assert prompts(folder, entries) == ["b.json"]
    assert refusals(entries) == {1: "a.json: cannot be read: Permission denied"}


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Without root's right to read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


# Settings.


def test_job_toml_comes_before_config_toml(folder: Path) -> None:
    assert folder_settings(folder) is None
    (folder / "config.toml").write_text('model = "original"')
    assert folder_settings(folder) == ({"model": "original"}, "config.toml")
    (folder / "job.toml").write_bytes(b'\xef\xbb\xbfmodel = "job"')
    assert folder_settings(folder) == ({"model": "job"}, "job.toml")
    dots = f"a.b.c {'.' * 5000} {'A sentence. ' * 1000}"
    (folder / "job.toml").write_text(f'system_message = """\n{dots}"""\noptions.num_ctx = 1\n')
    assert folder_settings(folder) == ({"system_message": dots, "options": {"num_ctx": 1}}, "job.toml")


@pytest.mark.parametrize(
    "content",
    [
        b"model = ",
        b"model = '\xff'",
        b"#" * 2**20 + b"##",
        b"model = " + b"9" * 5000,
        b"model = " + b"[" * 100_000,
        b".".join([b"a"] * 500_000) + b" = 1",
        b"[" + b" . ".join([b'"a b"', b"'c'"] * 10_000) + b"]",
    ],
)
def test_settings_that_are_not_toml_refuse_the_drop(folder: Path, content: bytes) -> None:
    (folder / "job.toml").write_bytes(content)
    with pytest.raises(DropRefused, match=r"^job\.toml ") as refused:
        folder_settings(folder)
    assert refused.value.code == "job_settings"


def test_settings_behind_a_link_are_not_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('model = "m"')
    (folder / "job.toml").symlink_to(tmp_path / "other.toml")
    with pytest.raises(DropRefused, match="must be a file"):
        folder_settings(folder)


def test_settings_that_are_a_pipe_do_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "job.toml")
    with pytest.raises(DropRefused, match="regular file"):
        folder_settings(folder)
