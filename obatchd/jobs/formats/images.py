"""Pictures in requests: base64 as Ollama takes it, and files of a dropped folder made into that."""

from __future__ import annotations

import binascii
import difflib
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from obatchd.jobs.formats.source import Budget, Unreadable, open_source, raw_fields
from obatchd.jobs.model import IMAGE_ENDINGS, RequestRefused

# How the formats begin that Ollama's runners decode.
_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM")
_NAMES = "image_files"
_USUAL = str.maketrans("-_", "+/")  # from the alphabet of URLs and file names
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


def with_images(raw: bytes, folder: Path, budget: Budget, limit_bytes: int) -> bytes:
    """A request of a folder with the files that it names as images in it; their names come back with the result.

    Raises RequestRefused where a file cannot be read, is no image or makes the request too long, TooMuch where the drop
    unpacks to more than it may.
    """
    if b'"image' not in raw:
        return raw
    try:
        fields = raw_fields(raw)
        given = {name: _value(fields[name]) for name in _PICTURED if name in fields}
    except (ValueError, RecursionError):
        return raw  # indexing says why it is wrong
    reader = _Reader(folder, budget, limit_bytes)
    try:
        added = {name: reader.filled(value, name) for name, value in given.items()}
    except RecursionError:
        return raw
    if not reader.names:
        return raw
    added[_NAMES] = reader.names
    return raw.rstrip()[:-1] + b"," + _encode(added)[1:]  # of two values of a name the last one counts


class _Reader:
    """Reads the files that one request names."""

    def __init__(self, folder: Path, budget: Budget, limit_bytes: int) -> None:
        self.names: list[str] = []
        self._folder = folder
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
        if "/" in image or "\0" in image:
            raise RequestRefused("bad_image", f"the image {image!r} is no file directly in the folder")
        content = self._read(image)
        if not _is_image(content):
            raise RequestRefused("bad_image", f"{image} is not PNG, JPEG, GIF, BMP or WebP")
        self.names.append(image)
        return b64encode(content).decode()

    def _read(self, name: str) -> bytes:
        try:
            with open_source(self._folder / name, packed=False, budget=self._budget) as source:
                content = source.whole(self._left_bytes)
        except Unreadable as error:
            reason = f"the image {name} cannot be read: {error}{self._nearest(name)}"
            raise RequestRefused("bad_image", reason) from None
        self._left_bytes -= (len(content) + 2) // 3 * 4
        if self._left_bytes < 0:
            raise RequestRefused("bad_image", f"with {name} the request is longer than max_line_bytes")
        return content

    def _nearest(self, name: str) -> str:
        there = [path.name for path in self._folder.iterdir() if path.name.lower().endswith(IMAGE_ENDINGS)]
        close = difflib.get_close_matches(name, there, 1)
        return f"; did you mean {close[0]}?" if close else ""
