"""Words for an answer that is not Ollama's: of a proxy in front of a server, or of something else at its address."""

from __future__ import annotations

import re

_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_QUOTED = 120  # characters of a page
_ADDRESS = "or correct the address in [ollama_instances]"
_UNREACHED = f"the proxy in front of Ollama does not reach it; look at both, {_ADDRESS}"
_SLOW = f"the proxy in front of Ollama did not wait long enough (nginx: proxy_read_timeout); let it, {_ADDRESS}"
_NO_ACCESS = f"access is refused: servers.remote_token is missing or not the one it takes; correct that, {_ADDRESS}"
_HINTS = {
    401: _NO_ACCESS,
    403: _NO_ACCESS,
    408: _SLOW,
    413: f"the request is larger than the proxy in front of Ollama takes (nginx: client_max_body_size); raise that, "
    f"{_ADDRESS}",
    429: f"the proxy in front of Ollama takes fewer requests at a time; lower servers.remote_slots, {_ADDRESS}",
    502: _UNREACHED,
    503: _UNREACHED,
    504: _SLOW,
    521: _UNREACHED,  # this and the next three: Cloudflare's
    522: _UNREACHED,
    523: _UNREACHED,
    524: _SLOW,
}
_ELSEWHERE = f"a proxy in front of Ollama, or something else, answers there; look at it, {_ADDRESS}"


def words(url: str, status: int, page: str, location: str = "") -> str:
    """What happened, where, and what to do: ``url`` answered ``status`` with ``page``, or redirects to ``location``."""
    if 300 <= status < 400:
        target = f" to {location.partition('?')[0][:_QUOTED]}" if location else ""
        return (
            f"{url} answered {status}, a redirect{target}, and redirects are not followed: write the address that "
            "answers by itself into [ollama_instances]"
        )
    said = excerpt(page)
    return f"{url} answered {status}{said and f' ({said})'}, not as Ollama does: {_HINTS.get(status, _ELSEWHERE)}"


def excerpt(page: str) -> str:
    """The title of a page of HTML, else its text, on one line and not long."""
    title = _TITLE.search(page)
    text = " ".join(_TAG.sub(" ", title[1] if title else page).split())
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 1]}…"
