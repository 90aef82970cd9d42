"""Pictures in requests: base64 as Ollama takes it, and files of a dropped folder made into that."""

from __future__ import annotations

import binascii
import difflib
import os
from base64 import b64encode
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from obatchd.jobs.formats.reader.fields import fields_of
from obatchd.jobs.formats.source import Budget, Unreadable, open_source, raw_fields
from obatchd.jobs.model import IMAGE_ENDINGS, RequestRefused

# How the formats begin that Ollama's runners decode.
_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM")
_NAMES = "image_files"
_USUAL = str.maketrans("-_", "+/")  # from the alphabet of URLs and file names
_METADATA, _FILE_NAME = "metadata", "file_name"  # https://huggingface.co/docs/datasets/image_dataset#imagefolder
_text = msgspec.json.Decoder(str | None)
_encode = msgspec.json.Encoder().encode
# Fields that may have images in them, and those that are one.
_PICTURED = ("images", "image", "image_url", "messages", "content", "prompt")
_OF_IMAGES = ("images", "image", "image_url", "url")
_value = msgspec.json.Decoder().decode


def bare_base64(image: str) -> str:
    """Base64 as Ollama takes it: without the beginning of a data URL and line ends, in the usual alphabet."""
    bare = image.partition(",")[2] if image.startswith("data:") else image
    return "".join(bare.split()).translate(_USUAL)


def image_problem(images: Iterable[Any]) -> str:
    """Why one of the images cannot be sent; empty when all can."""
    for image in images:
        if not isinstance(image, str):
            return "images must be texts: base64, or names of files of the dropped folder"
        if image.startswith(("http://", "https://")):
            return f"the image {image[:200]} is an address, and pictures are not fetched; give base64, or a folder"
        try:
            content = binascii.a2b_base64(bare_base64(image), strict_mode=True)
        except (ValueError, binascii.Error):
            if len(image) < 256:
                return f"the image '{image}' is no base64; files can be named only in a dropped folder that holds them"
            return "an image is no valid base64"
        if not _is_image(content):
            return "an image is not PNG, JPEG, GIF, BMP or WebP"
    return ""


def _is_image(content: bytes) -> bool:
    return content.startswith(_BEGINNINGS) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")


class Pictures:
    """The files of a folder that requests may name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _all(self) -> dict[str, list[Path]]:
        """Paths in the folder, by their names in small letters."""
        found: dict[str, list[Path]] = {}
        for place, _, files, _ in os.fwalk(self.folder):
            for name in files:
                if name.lower().endswith(IMAGE_ENDINGS):
                    path = Path(place).relative_to(self.folder) / name
                    found.setdefault(str(path).casefold(), []).append(path)
        return found

    def place(self, name: str, below: Path) -> Path:
        """The path of a file that a request in the folder ``below`` names, in the folder.

        Capitals count only where the name is not there as it is written: files from Windows and macOS.
        """
        places = [below / name, Path(name)]
        for place in places:
            if os.path.lexists(self.folder / place):
                return place
        alike = [path for place in dict.fromkeys(places) for path in self._all.get(str(place).casefold(), [])]
        return alike[0] if len(alike) == 1 else places[-1]

    def nearest(self, name: str) -> str:
        """A question for the author of a request that names no file."""
        close = difflib.get_close_matches(name.casefold(), self._all, 1)
        return f"; did you mean {self._all[close[0]][0]}?" if close else ""


def with_images(raw: bytes, pictures: Pictures, origin: Path, budget: Budget, limit_bytes: int) -> bytes:
    """A request of a folder with the files that it names as images in it; their names come back with the result.

    Names are those of files in the folder of ``origin``, the request's own file, or in the dropped folder.

    Raises RequestRefused where a file cannot be read, is no image or makes the request too long, TooMuch where the drop
    unpacks to more than it may.
    """
    is_metadata = origin.stem.lower() == _METADATA
    if b'"image' not in raw and not is_metadata:
        return raw
    try:
        fields, _ = fields_of(raw)
        given = {name: _value(fields[name]) for name in _PICTURED if name in fields}
        if is_metadata and not any(given.get(name) for name in ("images", "image", "messages")):
            given["images"] = _described(fields)
    except (ValueError, RecursionError):
        return raw  # indexing says why it is wrong
    reader = _Reader(pictures, origin.parent, budget, limit_bytes)
    try:
        added = {name: reader.filled(value, name) for name, value in given.items()}
    except RecursionError:
        return raw
    if not reader.names:
        return raw
    added[_NAMES] = reader.names
    return raw.rstrip()[:-1] + b"," + _encode(added)[1:]  # of two values of a name the last one counts


def _described(fields: dict[str, msgspec.Raw]) -> list[str] | None:
    """The picture of the folder that a row of its metadata is about, as data sets of Hugging Face name it."""
    row = fields if _FILE_NAME in fields else raw_fields(fields.get("input_fields", b"{}"))
    name = _text.decode(row.get(_FILE_NAME, b"null"))
    return [name] if name is not None and name.lower().endswith(IMAGE_ENDINGS) else None


class _Reader:
    """Reads the files that one request names."""

    def __init__(self, pictures: Pictures, below: Path, budget: Budget, limit_bytes: int) -> None:
        self.names: list[str] = []
        self._pictures = pictures
        self._below = below
        self._budget = budget
        self._left_bytes = limit_bytes

    def filled(self, value: Any, name: str) -> Any:
        """``value``, which the field ``name`` has, with the images that it names, at any depth."""
        if isinstance(value, dict):
            return {key: self.filled(inner, key) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.filled(inner, name) for inner in value]
        return self.image(value) if isinstance(value, str) and name in _OF_IMAGES else value

    def image(self, image: str) -> str:
        """Base64 of the file that ``image`` names; anything that names none stays as it is."""
        if not image.lower().endswith(IMAGE_ENDINGS) or image.startswith(("http:", "https:")):
            return image
        if "\0" in image or image.startswith("/") or ".." in Path(image).parts:
            raise RequestRefused("bad_image", f"the image {image!r} is no file in the folder")
        content = self._read(image)
        if not _is_image(content):
            raise RequestRefused("bad_image", f"{image} is not PNG, JPEG, GIF, BMP or WebP")
        self.names.append(image)
        return b64encode(content).decode()

    def _read(self, name: str) -> bytes:
        place = self._pictures.place(name, self._below)
        try:
            with open_source(place, packed=False, budget=self._budget, folder=self._pictures.folder) as source:
                content = source.whole(self._left_bytes)
        except Unreadable as error:
            reason = f"the image {name} cannot be read: {error}{self._pictures.nearest(name)}"
            raise RequestRefused("bad_image", reason) from None
        self._left_bytes -= (len(content) + 2) // 3 * 4
        if self._left_bytes < 0:
            raise RequestRefused("bad_image", f"with {name} the request is longer than max_line_bytes")
        return content
