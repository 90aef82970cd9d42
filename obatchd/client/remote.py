"""The way to a daemon on another host: its API over HTTP, with a key."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import ssl
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from uuid import uuid4

from obatchd.client.control import document_in, folder_files, raised, target
from obatchd.client.drops import not_written
from obatchd.client.transport import AWAY, Document
from obatchd.errors import ConfigError, ControlError, DaemonDownError, NotFoundError, ObatchError

_BELOW = "/obatchd/v1/"
_TIMEOUT_S = 60.0
_LONG_TIMEOUT_S = 3600.0  # the daemon copies and flushes before it answers
_BLOCK_BYTES = 256 * 1024
_KEPT_S = 3600  # of an uploaded file, where no job comes of it; the least that the daemon takes
_RESULTS, _SO_FAR = ("results.jsonl", "errors.jsonl"), "so-far.jsonl"
_OF_PROXIES = (502, 503, 504)  # where nobody is behind them; answers of the daemon have an x-request-id
_JSON = {"Content-Type": "application/json"}


class RemoteDaemon:
    """A daemon at an address such as ``https://gpu.example.org:8434``. Implements
    :class:`obatchd.client.transport.Transport`.

    Results are copied into a directory of their own on this host, and deleted at the end of the program.

    Args:
        url: with ``http://`` only for this host (of a tunnel, say): a key would be read by others on the way.
        key: made by ``obatchctl key add`` on that host.
        ca: a file with the certificates that are trusted; None: those of the system.

    Raises:
        ConfigError: the address or the file cannot be used, or there is no key.
    """

    def __init__(self, url: str, key: str, ca: str | os.PathLike[str] | None = None) -> None:
        self._url = url.rstrip("/")
        self._host, self._port, self._base, secure = _place(self._url)
        if not key:
            raise ConfigError(f"{url} needs a key; on that host:  obatchctl key add", code="no_key")
        self._tls = _trusting(ca) if secure else None
        self._headers = {"Authorization": f"Bearer {key}"}
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        self._whole: set[str] = set()  # jobs whose results are there to their end
        self._uploaded: dict[str, str] = {}  # ids of files, by the token of their submission

    def get(self, path: str, *names: str, **query: str | float | None) -> Document:
        with self._asked("GET", _BELOW + target(path, names, query)) as response:
            return document_in(response.read())

    def post(self, path: str, *names: str, body: Document | None = None) -> Document:
        return self._post(_BELOW + target(path, names, {}), body, _TIMEOUT_S)

    def submit(self, path: Path, settings: Document, token: str, *, again: bool) -> Document:
        """Send the drop as a file, then make a job of that; a folder goes as an archive. What is sent ``again`` is
        asked for first, so that no file goes twice without need."""
        name = os.path.basename(os.path.abspath(path))
        name = f"{name}.zip" if path.is_dir() else name
        wanted: Document = {"name": name, "settings": settings, "token": token}
        if (file := self._uploaded.get(token)) is not None or again:
            try:
                return self._job_of(wanted | {"file": file or "none"}, token)
            except ControlError as error:
                if error.code != "no_upload":
                    raise
        with _as_file(path) as content:
            self._uploaded[token] = file = self._upload(name, content)
        try:
            return self._job_of(wanted | {"file": file}, token)
        except ObatchError as error:
            if not isinstance(error, DaemonDownError) and error.code not in AWAY:
                self._remove(self._uploaded.pop(token))
            raise

    def outbox(self, job: Document) -> Path | None:
        """A copy of what there is of the results by now."""
        if not job["outbox"]:
            return None
        name = str(job["job"])
        if self._copies is None:
            self._copies = tempfile.TemporaryDirectory(prefix="obatchd-results-")
            _keep.append(self._copies)
        place = Path(self._copies.name, name)
        if name in self._whole:
            return place
        place.mkdir(exist_ok=True)
        try:
            if job["state"] == "done":
                self._copy_whole(name, place)
            else:
                self._fetch(name, _SO_FAR, place / _RESULTS[0])
                (place / "status.json").write_text(json.dumps(job), "utf-8")
        except OSError as error:
            raise not_written(error) from None
        return place

    def _copy_whole(self, name: str, place: Path) -> None:
        (place / "status.json").unlink(missing_ok=True)
        for file in _RESULTS:
            try:
                self._fetch(name, file, place / file)
            except NotFoundError:  # of a job without failures, say
                (place / file).unlink(missing_ok=True)
        self._fetch(name, "summary.json", place / "summary.json")  # which says that the others are whole
        self._whole.add(name)

    def _fetch(self, job: str, name: str, to: Path) -> None:
        part = to.with_name(f".{to.name}.part")
        with self._asked("GET", _BELOW + target("jobs", (job, "files", name), {})) as response:
            with open(part, "wb") as file:
                shutil.copyfileobj(response, file, _BLOCK_BYTES)
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
        part.replace(to)

    def _job_of(self, wanted: Document, token: str) -> Document:
        job: Document = self._post(f"{_BELOW}jobs", wanted, _LONG_TIMEOUT_S)["job"]
        self._uploaded.pop(token, None)
        return job

    def _upload(self, name: str, content: BinaryIO) -> str:
        """Send a file; its id."""
        boundary = uuid4().hex
        fields = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": str(_KEPT_S)}
        head = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
            for field, value in fields.items()
        )
        head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="drop"\r\n\r\n'
        end = f"\r\n--{boundary}--\r\n".encode()
        size_bytes = os.fstat(content.fileno()).st_size
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + size_bytes + len(end)),
        }
        body = _blocks(head.encode(), content, size_bytes, end, name)
        with self._asked("POST", "/v1/files", body, headers, _LONG_TIMEOUT_S) as response:
            return str(document_in(response.read())["id"])

    def _remove(self, file: str) -> None:
        """Of a drop that was refused. Where it is not deleted now, it is within the hour."""
        with contextlib.suppress(ObatchError), self._asked("DELETE", f"/v1/files/{file}") as response:
            response.read()

    def _post(self, path: str, body: Document | None, timeout_s: float) -> Document:
        sent = None if body is None else json.dumps(body).encode()
        with self._asked("POST", path, sent, _JSON if sent else {}, timeout_s) as response:
            return document_in(response.read())

    @contextlib.contextmanager
    def _asked(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] = {},
        timeout_s: float = _TIMEOUT_S,
    ) -> Iterator[http.client.HTTPResponse]:
        """A good answer, whose body is not read yet; an error is raised."""
        connection = self._connection(timeout_s)
        try:
            try:
                connection.request(method, self._base + path, body, {**self._headers, **headers})
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:
                    raise
                # The daemon may have refused before it had read everything.
            with connection.getresponse() as response:
                if response.status in _OF_PROXIES and response.getheader("x-request-id") is None:
                    raise http.client.HTTPException(f"a proxy before it answers {response.status} {response.reason}")
                if response.status >= 400:
                    raised(document_in(response.read()), response.status)
                yield response
        except (http.client.HTTPException, ssl.SSLError, OSError) as error:
            raise self._lost(error, timeout_s) from None
        finally:
            connection.close()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._tls)

    def _lost(self, error: Exception, timeout_s: float) -> ControlError:
        if isinstance(error, ssl.SSLCertVerificationError):
            words = f"the certificate of {self._url} is not good: {error.verify_message}. ca= names one to trust"
            return ControlError(words, code="certificate")
        what = f"does not answer within {timeout_s:.0f} s" if isinstance(error, TimeoutError) else f"broke off: {error}"
        return DaemonDownError(f"obatchd at {self._url} {what}. Does it run, and listen there (listen in [http])?")


_keep: list[tempfile.TemporaryDirectory[str]] = []  # until the program ends: answers may be read later


def _place(url: str) -> tuple[str, int | None, str, bool]:
    """Host, port, path and whether TLS is spoken; raises ConfigError where that is no address."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigError(f"{url} is no address: {error}", code="url") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.username:
        raise ConfigError(f"{url} is no address such as https://gpu.example.org:8434", code="url")
    if parts.scheme == "http" and not _is_here(host):
        words = f"{url}: others on the way could read your key; use https://, or a tunnel (ssh -L) to that host"
        raise ConfigError(words, code="url")
    return host, port, parts.path, parts.scheme == "https"


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _trusting(ca: str | os.PathLike[str] | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else os.path.expanduser(ca))
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"{ca}: no certificates can be read from it: {error.strerror or error}", code="ca") from None


@contextlib.contextmanager
def _as_file(path: Path) -> Iterator[BinaryIO]:
    """A file as it is, a folder as an archive of the files in it."""
    try:
        if not path.is_dir():
            with open(path, "rb") as file:
                yield file
            return
        with tempfile.TemporaryFile() as packed:
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
                for name, each in folder_files(path):
                    archive.write(each, name)
            packed.seek(0)
            yield packed
    except OSError as error:
        raise ControlError(f"{error.filename or path} cannot be read: {error.strerror}", code="unreadable") from None


def _blocks(head: bytes, content: BinaryIO, size_bytes: int, end: bytes, name: str) -> Iterator[bytes]:
    yield head
    while size_bytes:
        if not (block := content.read(min(_BLOCK_BYTES, size_bytes))):
            raise ControlError(f"{name} became shorter while it was read; nothing was submitted", code="unreadable")
        size_bytes -= len(block)
        yield block
    yield end
