"""``/v1/files``: uploads as they stream in, downloads as they lie on the disk."""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any
from urllib.parse import quote

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpProcessingError
from attrs import define

from obatchd.control.programs import BATCHES, FileOperations, FileTerms, Upload
from obatchd.errors import ApiError
from obatchd.front.answers import answer, selection
from obatchd.front.routes import CALLER, Route

_MOST_LISTED = 10_000  # the default, too: old clients ask for one page
_BLOCK_BYTES = 1024**2  # written at a time
_READ_BYTES = 64 * 1024
_SILENCE_S = 60.0  # longest wait for the next bytes of an upload
_PARTS, _FIELD_BYTES = 16, 4096
_NAME_CHARACTERS = 255
# What aiohttp raises at a body that breaks the rules.
_MALFORMED = (ValueError, AssertionError, HttpProcessingError, web.RequestPayloadError)
# https://platform.openai.com/docs/api-reference/files/create
_LEAST_KEPT_S, _MOST_KEPT_S = 3600, 2_592_000


@define(eq=False)
class FileRoutes:
    """The routes."""

    _files: FileOperations

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/files", self._create, (BATCHES,), body_limit_bytes=None),
            Route("GET", "/v1/files", self._list, (BATCHES,)),
            Route("GET", "/v1/files/{file}", self._one, (BATCHES,)),
            Route("DELETE", "/v1/files/{file}", self._remove, (BATCHES,)),
            Route("GET", "/v1/files/{file}/content", self._content, (BATCHES,)),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        """The parts come in any order: what is wrong with the fields may be found after the file."""
        if not request.content_type.startswith("multipart/"):
            raise ApiError("the body must be multipart/form-data, with a file and its purpose", param="file")
        try:
            reader = await request.multipart()
        except _MALFORMED:
            raise ApiError("the body is no multipart/form-data", param="file") from None
        upload: Upload | None = None
        fields: dict[str, str] = {}
        try:
            for _ in range(_PARTS):
                if (part := await _next(reader)) is None:
                    break
                if part.name != "file":
                    fields[part.name or ""] = await _field(part)
                    continue
                if upload is not None:
                    raise ApiError("the body has more than one file", param="file")
                upload = await self._files.begin(request[CALLER], _name(part.filename))
                await _receive(part, upload)
            else:
                raise ApiError(f"the body has more than {_PARTS} parts", param="file")
            if upload is None:
                raise ApiError("Missing required parameter: 'file'.", code="missing_required_parameter", param="file")
            return answer(await upload.finish(_terms(fields)))
        finally:
            if upload is not None:
                await upload.abandon()

    async def _list(self, request: web.Request) -> web.Response:
        asked = selection(request, _MOST_LISTED, _MOST_LISTED)
        return answer(await self._files.all(request[CALLER], asked))

    async def _one(self, request: web.Request) -> web.Response:
        return answer(self._files.one(request[CALLER], request.match_info["file"]))

    async def _remove(self, request: web.Request) -> web.Response:
        return answer(await self._files.remove(request[CALLER], request.match_info["file"]))

    async def _content(self, request: web.Request) -> web.StreamResponse:
        content = self._files.content(request[CALLER], request.match_info["file"])
        name = quote(os.fsencode(content.name), safe="")
        headers = {
            "Content-Type": "application/jsonl",
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
            "Cache-Control": "no-store",
        }
        return Download(content.path, chunk_size=_BLOCK_BYTES, headers=headers)


class Download(web.FileResponse):
    """A file that is sent while its call is still under way; aiohttp sends what is returned, which is nothing then."""

    _is_sent = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if self._is_sent:
            return None
        self._is_sent = True
        return await super().prepare(request)


async def _next(reader: MultipartReader) -> BodyPartReader | None:
    try:
        async with asyncio.timeout(_SILENCE_S):
            part = await reader.next()
    except TimeoutError:
        raise _silent() from None
    except _MALFORMED:
        raise _cut_off() from None
    if part is not None and not isinstance(part, BodyPartReader):
        raise ApiError("the body has parts in parts", param="file")
    return part


async def _receive(part: BodyPartReader, upload: Upload) -> None:
    """Hand a file on in blocks, in constant memory."""
    block = bytearray()
    while True:
        piece = await _read(part, _READ_BYTES)
        block += piece
        if len(block) >= _BLOCK_BYTES or (not piece and block):
            await upload.write(bytes(block))
            block.clear()
        if not piece:
            return


async def _field(part: BodyPartReader) -> str:
    value = bytearray()
    while piece := await _read(part, _FIELD_BYTES):
        value += piece
        if len(value) > _FIELD_BYTES:
            raise ApiError(f"a field has more than {_FIELD_BYTES} bytes", param=part.name)
    return value.decode("utf-8", "replace")


async def _read(part: BodyPartReader, most_bytes: int) -> bytes:
    try:
        async with asyncio.timeout(_SILENCE_S):
            return bytes(await part.read_chunk(most_bytes))
    except TimeoutError:
        raise _silent() from None
    except _MALFORMED:
        raise _cut_off() from None


def _silent() -> ApiError:
    return ApiError(f"nothing came for {_SILENCE_S:.0f} s", status=408, code="timeout", final=False)


def _cut_off() -> ApiError:
    return ApiError("the body is no whole multipart/form-data", param="file")


def _name(given: Any) -> str:
    """The name of a file as its client calls it, without folders and control characters."""
    name = str(given or "").rpartition("/")[2].rpartition("\\")[2]
    name = "".join(c for c in name if c.isprintable()).encode("utf-8", "replace").decode()
    return name[-_NAME_CHARACTERS:] or "upload"


def _terms(fields: dict[str, str]) -> FileTerms:
    if (purpose := fields.get("purpose")) is None:
        raise ApiError("Missing required parameter: 'purpose'.", code="missing_required_parameter", param="purpose")
    anchor, seconds = (fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return FileTerms(purpose, None)
    if anchor != "created_at":
        raise ApiError("expires_after[anchor] must be created_at", param="expires_after.anchor")
    if not re.fullmatch("[0-9]{1,9}", seconds or "") or not _LEAST_KEPT_S <= int(seconds or 0) <= _MOST_KEPT_S:
        words = f"expires_after[seconds] must be {_LEAST_KEPT_S} to {_MOST_KEPT_S}, an hour to 30 days"
        raise ApiError(words, param="expires_after.seconds")
    return FileTerms(purpose, int(seconds or 0))
