"""Takes the picture of the page in docs/ anew, from ``scripts/demo --web``: what it shows is what the page shows.

Needs what ``scripts/test-page`` gets, and Chromium. Usage: ``.venv/bin/python scripts/draw_page.py [DIRECTORY]``
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import demo_web
from demo import Demo, _command

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "browser"))
from browser_support import Browser, why_not  # noqa: E402 - stands beside its tests

WORKED_S = 75.0  # so that the GPUs are warm, one is hot and one is out of use
SIZE = {"width": 1280, "height": 640}


def main() -> int:
    if reason := why_not():
        sys.exit(reason)
    shots = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    directory = Path(tempfile.mkdtemp(prefix="obatchd-page-"))
    demo = Demo(directory, demo_web.plan())
    browser = Browser(shots)
    try:
        demo.wait_until_ready(every=True)
        demo_web.give_work(demo, directory)
        time.sleep(WORKED_S)
        for scheme in ("light", "dark"):
            command = [_command("obatchctl"), "--spool", demo.spool, "web", "--print"]
            link = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            browser.context(colorScheme=scheme, viewport=SIZE, deviceScaleFactor=1)
            browser.sign_in(link)
            browser.run("await page.waitForTimeout(4500)")
            print(browser.shoot("page" if scheme == "light" else "page-dark"))
    finally:
        browser.close()
        demo.stop()
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
