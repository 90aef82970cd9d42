"""The files of the page, as they are packed with obatchd: read once, so that they fit the daemon that runs.

Their address has the hash of all of them in it, ``/page/HASH/app.js``. So a browser may keep them for ever, modules
that import each other (``./jobs.js``) are always of one version, and nothing in them has to be rewritten. Only in
``index.html``, which names them as they are called here (``src="app.js"``), the addresses are put when it is read.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

DIRECTORY = Path(__file__).parent / "static"
_INDEX = "index.html"
_HASH_CHARACTERS = 16
_LEAST_PACKED_BYTES = 1024
_KINDS = {
    ".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".json": "application/json",
    ".png": "image/png", ".svg": "image/svg+xml", ".txt": "text/plain",
}  # fmt: skip
_PACKED_ALREADY = (".png",)


class PageFile(NamedTuple):
    """One of them."""

    kind: str  # its media type
    body: bytes
    packed: bytes | None  # with gzip; None: that makes it no smaller


class PageFiles:
    """All of them, by their names below the directory."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        found = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.suffix in _KINDS
        }
        whole = hashlib.sha256()
        for name, body in found.items():
            whole.update(b"%s\0%d\0%s" % (name.encode(), len(body), body))
        self.hash = whole.hexdigest()[:_HASH_CHARACTERS]
        index = found.pop(_INDEX).decode()
        for name in found:
            index = index.replace(f'="{name}"', f'="/page/{self.hash}/{name}"')
        self._found, self._read = found, {_INDEX: _file(_INDEX, index.encode())}

    @property
    def index(self) -> PageFile:
        """The page itself."""
        return self._read[_INDEX]

    def one(self, given_hash: str, name: str) -> PageFile | None:
        """Another file; None: there is none of this name, or it was one of another version."""
        if given_hash != self.hash or name not in self._found:
            return None
        if name not in self._read:
            self._read[name] = _file(name, self._found[name])
        return self._read[name]


def _file(name: str, body: bytes) -> PageFile:
    suffix = Path(name).suffix
    small = len(body) < _LEAST_PACKED_BYTES or suffix in _PACKED_ALREADY
    return PageFile(_KINDS[suffix], body, None if small else gzip.compress(body, mtime=0))
