"""Move the news of changelog.d into CHANGELOG.md, for a release:  scripts/release --changelog

They come to the top of the version's section, in the order of their files' names; whoever releases puts them in order.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from obatchd import __version__

ROOT = Path(__file__).resolve().parents[1]


def move(changelog: Path, news: Path, version: str, date: str) -> int:
    """Move all bullets into the section of ``version``, which is made if it is missing; returns how many files went."""
    files = sorted(path for path in news.glob("*.md") if path.name != "README.md")
    bullets = "".join(f"{path.read_text('utf-8').strip()}\n" for path in files)
    head, _, sections = changelog.read_text("utf-8").partition("\n## ")
    title, _, rest = sections.partition("\n\n")
    if title.split()[0] != version:
        rest = f"\n## {sections}"
    elif not rest.startswith("* ") and bullets:
        rest = f"\n{rest}"
    changelog.write_text(f"{head}\n## {version} ({date})\n\n{bullets}{rest}", "utf-8")
    for path in files:
        path.unlink()
    return len(files)


if __name__ == "__main__":
    today = time.strftime("%Y-%m-%d", time.gmtime())
    count = move(ROOT / "CHANGELOG.md", ROOT / "changelog.d", __version__, today)
    citation = ROOT / "CITATION.cff"
    stated = re.sub(r"^version: .*$", f"version: {__version__}", citation.read_text("utf-8"), flags=re.MULTILINE)
    citation.write_text(re.sub(r"^date-released: .*$", f"date-released: {today}", stated, flags=re.MULTILINE), "utf-8")
    print(f"CHANGELOG.md, CITATION.cff: {__version__} of {today}; {count} files of changelog.d moved")
