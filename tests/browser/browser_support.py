"""One Chromium for all tests of the page, driven with playwright-core by a small program for Node (``driver.mjs``)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import textwrap
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daemon_support import Daemon

DRIVER = Path(__file__).parent / "driver.mjs"
PACKAGES = Path(os.environ.get("OBATCHD_TEST_PROGRAMS", "~/.cache/obatchd/programs")).expanduser() / "page"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def why_not() -> str:
    """What is missing for a browser; empty: nothing."""
    if not any(map(shutil.which, NAMES)):
        return "no Chromium is here (Debian: apt install chromium)"
    if not shutil.which("node"):
        return "Node is not here"
    if not all((PACKAGES / "node_modules" / name).exists() for name in ("playwright-core", "axe-core")):
        return "playwright-core and axe-core are not here: scripts/test-page gets them"
    return ""


def link_of(d: Daemon) -> str:
    """A new link to its page."""
    made = d.control("web", "--print")
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


class Browser:
    """The browser, and one context of it at a time."""

    def __init__(self, shots: Path) -> None:
        self.shots = shots  # directory of pictures
        chromium = next(filter(None, map(shutil.which, NAMES)))
        self._driver = subprocess.Popen(
            ["node", DRIVER, PACKAGES, chromium], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, code: str, _context: dict[str, Any] | None = None, **given: Any) -> Any:
        """The value of a piece of JavaScript that has ``page``, ``given`` and ``at``; see the driver."""
        assert self._driver.stdin is not None and self._driver.stdout is not None
        asked = {"context": _context, "code": textwrap.dedent(code), "given": given}
        self._driver.stdin.write(json.dumps(asked) + "\n")
        self._driver.stdin.flush()
        line = self._driver.stdout.readline()
        assert line, "the driver of the browser has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def context(self, **options: Any) -> None:
        """Begin anew: no storage, nothing noted; ``options`` as playwright has them."""
        self.run("", _context=options)

    def sign_in(self, link: str, view: str = "fleet") -> None:
        """Open the link of ``obatchctl web``, then a view."""
        self.run("await page.goto(given.link)", link=link)
        try:
            self.wait("header", 20)
        except AssertionError as error:
            raise AssertionError(f"{self.text()}\n{self.trouble()}") from error
        self.view(view)

    def view(self, view: str, wait_for: str = "main h1") -> None:
        code = """
            await page.evaluate((view) => { location.hash = '#/' + view }, given.view);
            await page.waitForSelector(given.wait, { state: 'attached' });
        """
        self.run(code, view=view, wait=wait_for)

    def shoot(self, name: str, *, whole: bool = False) -> Path:
        path = self.shots / f"{name}.png"
        self.run("await page.screenshot({ path: given.path, fullPage: given.whole })", path=str(path), whole=whole)
        return path

    def differ(self, one: Path, other: Path) -> int:
        """How many pixels of two pictures differ by more than what round corners do between two runs of Chromium."""
        code = """
            const tab = await at.tab();
            const count = await tab.evaluate(async (both) => {
              const pixels = await Promise.all(both.map(async (base64) => {
                const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${base64}`)).blob());
                const context = new OffscreenCanvas(image.width, image.height).getContext('2d');
                context.drawImage(image, 0, 0);
                return context.getImageData(0, 0, image.width, image.height).data;
              }));
              const [a, b] = pixels, found = new Set();
              if (a.length !== b.length) return -1;
              for (let at = 0; at < a.length; at++) if (Math.abs(a[at] - b[at]) > 16) found.add(at >> 2);
              return found.size;
            }, given.both);
            await tab.close();
            return count;
        """
        return int(self.run(code, both=[b64encode(path.read_bytes()).decode() for path in (one, other)]))

    def text(self, selector: str = "body") -> str:
        return str(self.run("return await page.locator(given.selector).first().innerText()", selector=selector))

    def wait(self, selector: str, timeout_s: float = 15) -> None:
        code = "await page.waitForSelector(given.selector, { timeout: given.timeout })"
        self.run(code, selector=selector, timeout=timeout_s * 1000)

    def click(self, selector: str) -> None:
        self.run("await page.locator(given.selector).first().click()", selector=selector)

    def trouble(self) -> list[str]:
        """Errors and warnings of the console, violations of the policy among them, and errors of scripts, so far."""
        return list(self.run("return at.trouble"))

    def foreign(self, origin: str) -> list[str]:
        """Calls to any place but the origin."""
        return [url for url in self.run("return at.asked") if not url.startswith((f"{origin}/", "blob:", "data:"))]

    def findings(self) -> list[str]:
        """What axe-core finds that is serious or worse."""
        found = self.run(
            """
            await page.evaluate((await import('node:fs')).readFileSync(at.axe, 'utf8'));
            const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ['violations'] }));
            return violations.filter(({ impact }) => ['serious', 'critical'].includes(impact))
              .flatMap(({ id, nodes }) => nodes.map(({ html, any }) =>
                `${id}: ${html.slice(0, 200)} ${any[0]?.message || ''}`));
            """
        )
        return list(found)

    def close(self) -> None:
        assert self._driver.stdin is not None
        self._driver.stdin.close()
        try:
            self._driver.wait(10)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
        if self._driver.stdout is not None:
            self._driver.stdout.close()
