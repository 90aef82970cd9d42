"""Pictures in requests: base64, or files of a dropped folder."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from obatchd.dispatch.protocol import JobContext
from obatchd.dispatch.worker.body import has_images, left_out, request_body
from obatchd.jobs.formats import Request, parse_request, read_entries, request_file
from obatchd.jobs.formats.images import image_problem
from obatchd.settings.tables.spool import InboxSettings

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
TEXT = base64.b64encode(PNG).decode()


def read(folder: Path, **limits: Any) -> tuple[list[Request], dict[int, tuple[str, str]]]:
    entries = list(read_entries(folder, "f", InboxSettings(**limits)))
    content = request_file(folder).read_bytes()
    good = [parse_request(content[e.offset : e.offset + e.length]) for e in entries if e.refusal is None]
    return good, {e.line: (e.refusal.code, e.refusal.message) for e in entries if e.refusal is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "input"
    path.mkdir()
    (path / "scan.png").write_bytes(PNG)
    return path


def put(folder: Path, *requests: dict[str, Any]) -> None:
    (folder / "r.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))


def test_files_of_the_folder_become_base64_and_their_names_come_back(folder: Path) -> None:
    messages = [
        {"role": "user", "content": "compare", "images": ["scan.png", TEXT]},
        {"role": "assistant", "content": "same"},
        {"role": "user", "content": "sure?"},
    ]
    put(folder, {"prompt": "see", "images": ["scan.png"], "n": 1}, {"messages": messages}, {"prompt": "none"})
    requests, refused = read(folder)
    assert refused == {}
    assert [has_images(request) for request in requests] == [True, True, False]
    assert requests[0].images == [TEXT]
    assert json.loads(bytes(requests[0].input["image_files"])) == ["scan.png"]
    assert requests[1].messages == [{**messages[0], "images": [TEXT, TEXT]}, *messages[1:]]


def test_files_are_found_wherever_a_request_may_have_images(folder: Path) -> None:
    part = {"type": "image_url", "image_url": {"url": "scan.png"}}
    put(
        folder,
        {"prompt": "see", "images": "scan.png"},
        {"prompt": "see", "image": "scan.png", "url": "scan.png"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, part]}]},
        {"messages": {"role": "user", "content": "see", "images": "scan.png"}},
        {"prompt": "see", "image_url": {"url": "scan.png"}},
        {"prompt": "the file scan.png", "images": [TEXT]},
    )
    requests, refused = read(folder)
    assert refused == {}
    seen = [request.images or request.messages[0]["images"] for request in requests]
    assert seen == [[TEXT]] * 6
    assert json.loads(bytes(requests[1].input["url"])) == "scan.png"
    assert requests[5].prompt == "the file scan.png"


def test_an_image_of_a_message_is_found_beside_images_that_are_null(folder: Path) -> None:
    message = {"role": "user", "content": "see", "images": ["scan.png"]}
    put(folder, {"prompt": None, "images": None, "messages": [message]})
    [request], refused = read(folder)
    assert refused == {}
    assert request.messages == [{**message, "images": [TEXT]}]


def test_what_is_no_image_of_the_folder_fails_its_request_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "note.jpg").write_text("no image")
    (folder / "big.bmp").write_bytes(b"BM" + bytes(100_000))
    (tmp_path / "secret.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "folder.png").mkdir()
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    put(folder, *({"prompt": "x", "images": [name]} for name in (
        "scan.pmg", "scam.png", "note.jpg", "../secret.png", "big.bmp", "scan.png", "link.png", "a" * 300 + ".png",
        "folder.png",
    )))  # fmt: skip
    requests, refused = read(folder, max_line_bytes=50_000)
    assert len(requests) == 1
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    problems = {line - 1: refused[line] for line in refused}  # behind the link itself
    assert {code for code, _ in problems.values()} == {"bad_image", "bad_file"}
    for line, words in {
        1: "r.jsonl, line 1: the image 'scan.pmg' is no base64",
        2: "the image scam.png cannot be read: No such file or directory; did you mean scan.png?",
        3: "note.jpg is not PNG",
        4: "'../secret.png' is no file in the folder",
        5: "with big.bmp the request is longer than max_line_bytes",
        7: "the image link.png cannot be read",
        8: "cannot be read: File name too long",
        9: "the image folder.png cannot be read: it is not a regular file",
    }.items():
        assert words in problems[line][1]


def test_a_folder_is_no_image(folder: Path) -> None:
    (folder / "folder.png").mkdir()
    put(folder, {"prompt": "x", "images": ["folder.png"]}, {"prompt": "y", "images": ["scan.png"]})
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    requests, refused = read(folder)
    assert len(requests) == 1
    assert "the image folder.png cannot be read: it is not a regular file" in refused[1][1]
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([TEXT], ""),
        ([f"data:image/png;base64,{TEXT}"], ""),
        (["scan.png"], "files can be named only in a dropped folder"),
        ([TEXT[:-1]], "is no base64"),
        ([base64.b64encode(b"text").decode()], "an image is not PNG"),
        ([5], "images must be texts"),
    ],
)
def test_base64_is_looked_at_before_it_is_sent(images: list[Any], words: str) -> None:
    problem = image_problem(images)
    assert words in problem
    assert bool(words) == bool(problem)


def test_images_in_a_plain_file_must_be_base64(tmp_path: Path) -> None:
    path = tmp_path / "input"
    requests = [
        {"prompt": "a", "images": ["scan.png"]},
        {"messages": [{"role": "user", "content": "a", "images": ["scan.png"]}]},
        {"messages": [{"role": "user", "content": "a"}], "images": [TEXT]},
        {"prompt": "a", "images": [TEXT]},
    ]
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    refused = [e.refusal.code if e.refusal else "" for e in read_entries(path, "r.jsonl", InboxSettings())]
    assert refused == ["bad_image", "bad_image", "wrong_type", ""]


def test_ollama_is_sent_bare_base64() -> None:
    context = JobContext(1, "job", "", {}, 5)
    url = f"data:image/png;base64,{TEXT}"
    sent = request_body(Request(prompt="see", images=[url]), context, "m", {})
    assert sent["messages"] == [{"role": "user", "content": "see", "images": [TEXT]}]
    chat = [{"role": "user", "content": "see", "images": [url]}, {"role": "user", "content": "and"}]
    sent = request_body(Request(messages=chat), context, "m", {})
    assert sent["messages"] == [{"role": "user", "content": "see", "images": [TEXT]}, chat[1]]


# What has no effect is said.


def test_what_is_left_out_of_a_request_is_said() -> None:
    asked = Request(prompt="p", options={"num_gpu": 1, "num_ctx": 8192, "seed": 1}, keep_alive="5m", think=True)
    notes = left_out(asked, ["completion"])
    assert [note.partition(" is left out")[0] for note in notes] == ["options.num_gpu", "keep_alive", "think"]
    assert left_out(Request(prompt="p", options={"num_ctx": 8192}, context_length=4096))[0].startswith(
        "options.num_ctx"
    )
    assert left_out(Request(prompt="p", options={"seed": 1}, think=False), ["completion"]) == []
    assert left_out(Request(prompt="p", think="high"), ["thinking"]) == left_out(Request(prompt="p", think=True)) == []


@pytest.mark.parametrize(
    ("request_", "job", "capabilities", "sent"),
    [
        (None, "auto", ["thinking"], None),  # the model's own way
        (None, True, ["thinking"], True),
        (None, "high", ["thinking"], "high"),
        (None, True, ["completion"], None),  # Ollama would fail it
        (None, False, ["completion"], False),
        (False, True, ["thinking"], False),
        ("auto", True, ["thinking"], None),
        (True, "auto", ["completion"], None),
        (True, "auto", [], True),  # nothing is known of the model
    ],
)
def test_reasoning_is_asked_for_only_of_models_that_can(
    request_: Any, job: Any, capabilities: list[str], sent: Any
) -> None:
    context = JobContext(1, "job", "", {}, 5, think=job)
    body = request_body(Request(prompt="p", think=request_), context, "m", {}, capabilities)
    assert body.get("think") == sent


def test_a_request_may_want_text_where_its_job_wants_json() -> None:
    context = JobContext(1, "job", "", {}, 5, format="json")
    assert request_body(Request(prompt="p"), context, "m", {})["format"] == "json"
    assert "format" not in request_body(Request(prompt="p", format=""), context, "m", {})
    assert request_body(Request(prompt="p", format={}), context, "m", {}).get("format") is None


def test_images_lie_in_folders_and_capitals_count_only_where_they_have_to(folder: Path) -> None:
    """A data set of pictures, as it comes from Windows, macOS or Hugging Face."""
    (folder / "images").mkdir()
    for place in ("images/a.png", "B.PNG", "twice.png", "Twice.png", "images/only.png"):
        (folder / place).write_bytes(PNG)
    rows = [{"prompt": name, "images": [name]} for name in (
        "images/a.png", "B.PNG", "b.png", "Images/A.PNG", "TWICE.png", "only.png", "c.png", "images/../scan.png"
    )]  # fmt: skip
    put(folder, *rows)
    (folder / "images" / "metadata.jsonl").write_text('{"prompt": "near", "images": ["only.png"]}\n')
    requests, refused = read(folder)
    assert [request.prompt for request in requests] == ["images/a.png", "B.PNG", "b.png", "Images/A.PNG", "near"]
    assert {line: code for line, (code, _) in refused.items()} == dict.fromkeys((5, 6, 7, 8), "bad_image")
    assert "did you mean" in refused[5][1]


def test_a_number_that_is_none_hides_no_picture(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "scan.png", "prompt": "What?", "score": NaN}\n')
    put(folder, {"prompt": "see", "images": ["scan.png"], "score": float("nan")})
    requests, refused = read(folder)
    assert ([request.images for request in requests], refused) == ([[TEXT], [TEXT]], {})


def test_rows_of_metadata_are_about_the_picture_that_they_name(folder: Path) -> None:
    rows = [
        {"file_name": "scan.png", "prompt": "What?"},
        {"prompt": "no picture"},
        {"file_name": "a.txt", "prompt": "c"},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    put(folder, {"file_name": "scan.png", "prompt": "elsewhere it is a field like any other"})
    requests, refused = read(folder)
    assert refused == {}
    assert [request.images for request in requests] == [[TEXT], [], [], []]
    (folder / "metadata.jsonl").rename(folder / "metadata.csv")
    (folder / "metadata.csv").write_text("file_name,prompt\nscan.png,What?\ngone.png,What?\n")
    requests, refused = read(folder)
    assert [request.images for request in requests] == [[TEXT], []]
    assert "gone.png cannot be read" in refused[2][1]
