"""The ways in which a message leaves this host: a command of the administrator, and a webhook."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from obatchd.context.addresses import PinnedResolver
from obatchd.errors import NotToldError, SourceError

Message = dict[str, Any]  # see obatchd.documents.alarms.message
_SAID_BYTES = 2000  # of what a command writes to its standard error
_REASON_CHARACTERS = 200
_CONTENT_CHARACTERS = 2000  # of Discord's ``content`` (discord.com/developers/docs/resources/webhook)
# Power Automate, which posts to Teams for its users.
_TEAMS = (".logic.azure.com", ".api.powerplatform.com")


async def run_command(command: Sequence[str], message: Message, timeout_s: float) -> None:
    """Run a program without a shell, with the message as JSON on its standard input.

    Raises NotToldError where it cannot be started, does not end in time, or ends with another exit code than 0.
    """
    said = _Said()
    try:
        try:
            process = await _begin(command, msgspec.json.encode(message) + b"\n", said)
        except (OSError, ValueError) as error:
            raise NotToldError(f"it cannot be started: {getattr(error, 'strerror', None) or error}") from error
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            end = "was killed" if _killed(process.pid) else "cannot be killed: it runs as another user"
            raise NotToldError(f"it was not done in {timeout_s:g} s, and {end}") from None
        finally:
            if _killed(process.pid):
                await process.wait()
        if process.returncode:
            words = said.last_line()
            raise NotToldError(f"it ended with exit code {process.returncode}" + (f": {words}" if words else ""))
    finally:
        said.close()


def _killed(group: int) -> bool:
    """Kill a command and what it left behind in its own group; False where it runs as another user, as sudo does."""
    try:
        os.killpg(group, signal.SIGKILL)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass
    return True


class _Said:
    """The end of what a command writes to its standard error.

    A pipe of our own: asyncio's is waited for as long as somebody holds it, so also when the command has ended.
    """

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._kept = b""
        asyncio.get_running_loop().add_reader(self._reading, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while block := os.read(self._reading, 65536):
                self._kept = (self._kept + block)[-_SAID_BYTES:]
            asyncio.get_running_loop().remove_reader(self._reading)  # nobody can write any more

    def last_line(self) -> str:
        """The last line that is not empty."""
        self._read()
        lines = self._kept.decode("utf-8", "replace").split("\n")
        return next((_one_line(line) for line in reversed(lines) if line.strip()), "")

    def close_writing(self) -> None:
        """The command has its end of the pipe."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        self.close_writing()
        asyncio.get_running_loop().remove_reader(self._reading)
        os.close(self._reading)


async def _begin(command: Sequence[str], document: bytes, said: _Said) -> asyncio.subprocess.Process:
    ours = ("OBATCH", "PYTHONSAFEPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # A file in memory, not a pipe: a command that ends without reading it breaks nothing here.
    with open(os.memfd_create("message"), "w+b") as standard_input:
        standard_input.write(document)
        standard_input.seek(0)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=standard_input, stdout=asyncio.subprocess.DEVNULL, stderr=said.writing, env=environment,
            start_new_session=True,
        )  # fmt: skip
    said.close_writing()
    return process


async def post(url: str, message: Message, timeout_s: float, resolver: PinnedResolver | None = None) -> None:
    """Send the message to a webhook; with ``resolver`` only where that lets it go, else through the host's proxies.

    Redirects are not followed. Raises NotToldError; its words have no part of the URL but the host, since the rest of
    it is a secret.
    """
    target = URL(url)
    host = target.raw_host or ""
    body = msgspec.json.encode(chat_message(message, host))
    headers = {"Content-Type": "application/json", "User-Agent": "obatchd"}
    try:
        if resolver is not None:
            resolver.admit(target)
        connector = resolver.connector() if resolver is not None else None
        async with (
            asyncio.timeout(timeout_s),
            aiohttp.ClientSession(connector=connector, trust_env=resolver is None) as session,
            session.post(target, data=body, headers=headers, allow_redirects=False) as response,
        ):
            said = _one_line((await response.content.read(_SAID_BYTES)).decode("utf-8", "replace"))
    except TimeoutError:
        raise NotToldError(f"{host} did not answer in {timeout_s:g} s") from None
    except SourceError as error:
        raise NotToldError(error.message) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise NotToldError(f"{host} cannot be reached: {_without_secrets(_words(error), target)}") from None
    if not response.ok or response.status in range(300, 400):
        words = f"{host} answered {response.status}"
        raise NotToldError(f"{words}: {_without_secrets(said, target)}" if said else words)


def _words(error: Exception) -> str:
    """Why somebody cannot be reached; aiohttp's own words speak of ``ssl`` for plain HTTP, too."""
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
        known = error.os_error.errno in errno.errorcode
        return os.strerror(error.os_error.errno) if known else error.os_error.strerror or str(error.os_error)
    return str(error)


def chat_message(message: Message, host: str) -> Message:
    """The message with what chat services show: ``text`` (Slack, Mattermost), ``content`` (Discord), a card (Teams).

    They pass over fields that they do not know. Slack reads ``& < >`` as markup, which its rules have escaped
    (docs.slack.dev, "Formatting message text"). Nobody is mentioned by a message of ours, so ``@`` is parted from what
    follows. Workflows of Teams take adaptive cards alone (learn.microsoft.com, "Create and send messages"); a card is
    sent to no other host, because Slack has attachments of another kind.
    """
    plain = message["text"].replace("@", "@\u200b")
    text = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    made = message | {"text": text, "content": plain[:_CONTENT_CHARACTERS]}
    if host.endswith(_TEAMS):
        block = {"type": "TextBlock", "text": plain, "wrap": True}
        card = {"type": "AdaptiveCard", "version": "1.2", "body": [block]}
        attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
        made |= {"type": "message", "attachments": [attachment]}
    return made


def _without_secrets(words: str, url: URL) -> str:
    """Words of others about a URL, without its path and query."""
    secrets = [part for part in (*url.raw_parts, *url.parts, url.raw_query_string, url.query_string) if len(part) > 3]
    for secret in sorted(secrets, key=len, reverse=True):
        words = words.replace(secret, "…")
    return words


def _one_line(text: str) -> str:
    return re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]+", " ", text).strip()[:_REASON_CHARACTERS]
