"""``obatchctl web``: a link to the page in a browser, which works once."""

from __future__ import annotations

import html
import os
import platform
import webbrowser
from contextlib import suppress
from pathlib import Path

import click

from obatchd.cli.command import Command, Document, Invocation
from obatchd.client.runtime import HTTP_SOCKET, read_record
from obatchd.errors import ControlError
from obatchd.words import counted

_FILE = "obatchd-web.html"


@click.command("web", cls=Command)
@click.option("--no-open", "--print", "no_open", is_flag=True, help="Only print the link.")
@click.option(
    "--port", type=click.IntRange(1, 65535),
    help="The link is for this port of the browser's own machine, where a tunnel of yours begins (ssh -L).",
)  # fmt: skip
@click.option("--logout", is_flag=True, help="End all your sessions of the page, in every browser.")
def web_command(invocation: Invocation, no_open: bool, port: int | None, logout: bool) -> None:
    """Open the page in a browser.

    The link is good for a minute, and once; whoever opens it acts as you for twelve hours, or until --logout.
    """
    if logout:
        ended = invocation.client().delete("web/sessions")
        invocation.answer(ended, f"{counted(ended['ended'], 'session')} ended.")
        return
    made = invocation.client().post("web/codes")
    url = f"http://127.0.0.1:{port}/" if port is not None else made["url"]
    if url is None:
        raise ControlError(f"{made['problem']}. {_by_tunnel(invocation.spool)}", code="no_http")
    link = f"{url}#{made['code']}"
    invocation.answer({**made, "url": url, "link": link}, link)
    if invocation.json:
        return
    opened = not no_open and port is None and _opened(link)
    for line in _told(made, url, opened=opened, tunnelled=port is not None):
        click.echo(line, err=True)


def _told(made: Document, url: str, *, opened: bool, tunnelled: bool) -> list[str]:
    """What to do with the link."""
    lines = [
        "The page is opened in your browser; if not, open this link." if opened else "Open this link in a browser."
    ]
    lines[0] += f" It is good once, and for {made['good_for_s']:.0f} seconds."
    if "SSH_CONNECTION" in os.environ and not opened and not tunnelled:
        place = url.split("/")[2]
        lines.append(f"On your own machine, first:  ssh -N -L {place.rpartition(':')[2]}:{place} {platform.node()}")
    return lines


def _by_tunnel(spool: Path) -> str:
    """How the page is reached where the daemon listens on its socket alone."""
    path = read_record(spool).runtime_dir / HTTP_SOCKET
    tunnel = f"ssh -N -L 8434:{path} {platform.node()}"
    return f"Or, on your own machine:  {tunnel}   and then, here:  obatchctl web --port 8434"


def _opened(link: str) -> bool:
    """Have the desktop's browser open a link; False: there is none.

    By a file that only this user can read: everybody may see the arguments of a program, and a code in them.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime or not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    if type(browser) is webbrowser.GenericBrowser and "BROWSER" not in os.environ:  # one in this terminal
        return False
    to = html.escape(link)
    page = '<!doctype html><meta charset="utf-8"><title>obatchd</title>'
    page += f'<meta http-equiv="refresh" content="0; url={to}"><a href="{to}">obatchd</a>\n'
    path = Path(runtime, _FILE)
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError:
        return False
    return browser.open(path.as_uri())
