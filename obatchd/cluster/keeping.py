"""What a host keeps when it has joined: its file, with the head and its own name, and its credential."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from pathlib import Path

from attrs import frozen

from obatchd.cluster.host.files import write_file
from obatchd.cluster.joining import Joined
from obatchd.errors import ClusterError

_TABLE = re.compile(r"\s*\[cluster\]\s*(#.*)?")
_ANY_TABLE = re.compile(r"\s*\[")
_OURS = re.compile(r"\s*(head|fingerprint|name)\s*=")
_NEW_FILE = """\
# Settings of this host of a fleet; those that are not here come from its head. obatchd-join writes [cluster].
# Here belong [gpus], and of [servers] what depends on this machine: ollama, models_dir, environment.
"""


@frozen
class Place:
    """Where a host keeps that."""

    directory: Path
    config: Path
    owner: tuple[int, int] | None = None  # uid and gid of the directory's files, where root writes for a service

    def prepare(self) -> None:
        """Make the directory, and see that both files can be written: a code is used up by joining.

        Raises ClusterError (``not_kept``) where they cannot.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.config.parent.mkdir(parents=True, exist_ok=True)
            if not stat.S_ISDIR(self.directory.lstat().st_mode):
                raise ClusterError(f"{self.directory} is a link; name the directory itself with --dir", code="not_kept")
            if self.owner is not None:
                os.chown(self.directory, *self.owner, follow_symlinks=False)
            self._merged({})
        except OSError as error:
            raise self._not_kept(error) from None
        for folder in (self.directory, self.config.parent):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ClusterError(f"you may not write into {folder}; use sudo, or name another one", code="not_kept")

    def keep(self, joined: Joined) -> None:
        """Write both; raises ClusterError (``not_kept``) where the disk refuses."""
        table = {"head": str(joined.head), "fingerprint": joined.fingerprint, "name": joined.name}
        try:
            text = self._merged(table)
            write_file(self.directory / "credential", f"{joined.credential}\n".encode(), owner=self.owner)
            write_file(self.config, text.encode(), mode=0o644)
        except OSError as error:
            raise self._not_kept(error) from None

    def _merged(self, table: dict[str, str]) -> str:
        """The file with ``table`` in [cluster], and all else as it was."""
        try:
            text = self.config.read_text("utf-8")
        except FileNotFoundError:
            text = _NEW_FILE
        merged = with_table(text, table)
        try:
            tomllib.loads(text)
            tomllib.loads(merged)
        except tomllib.TOMLDecodeError as error:
            words = f"{self.config} cannot be read as TOML: {error}. Mend or remove it, and join again"
            raise ClusterError(words, code="not_kept") from None
        return merged

    def _not_kept(self, error: OSError) -> ClusterError:
        words = f"{error.filename or self.directory} cannot be written: {error.strerror}"
        return ClusterError(f"{words}. Name another place with --dir, or use sudo", code="not_kept")


def with_table(text: str, table: dict[str, str]) -> str:
    """``text`` as TOML with the keys of ``table`` in its ``[cluster]``; its other keys and comments stay."""
    ours = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    lines, inside, placed = list[str](), False, False
    for line in text.splitlines():
        if inside and _OURS.match(line):
            continue
        if _ANY_TABLE.match(line):
            inside = _TABLE.fullmatch(line) is not None
        lines.append(line)
        if inside and not placed:
            lines += ours
            placed = True
    if not placed:
        lines += ["", "[cluster]", *ours]
    return "\n".join(lines) + "\n"
