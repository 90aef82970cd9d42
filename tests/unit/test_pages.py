"""Pages lead where they say: every relative link and anchor of every page exists, and the picture is the table's."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]


def pages(folder: Path) -> Iterator[Path]:
    """Every page below a folder but those that are hidden or built, and news that wait for their release."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in ("build", "dist", "changelog.d"):
            continue
        if path.is_dir():
            yield from pages(path)
        elif path.suffix == ".md":
            yield path


PAGES = list(pages(ROOT))


def prose(page: Path) -> str:
    """The page without blocks and spans of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: dict[str, int] = {}
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {slug if number == 0 else f"{slug}-{number}" for slug, count in found.items() for number in range(count + 1)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_that_the_code_names_is_there() -> None:
    named = {
        (str(path.relative_to(ROOT)), page)
        for folder in ("obatchd", "tests", "scripts", "bench")
        for path in (ROOT / folder).rglob("*.py")
        for page in re.findall(r"\bdocs/[\w/-]+\.\w+", path.read_text("utf-8"))
    }
    assert named
    assert [each for each in sorted(named) if not (ROOT / each[1]).exists()] == []


def test_every_page_can_be_reached() -> None:
    """From the README, or from the index of a folder, over links alone; but for changes that wait for a release."""
    reached, open_pages = set[Path](), [ROOT / "README.md"]
    while open_pages:
        page = open_pages.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = ((page.parent / link.partition("#")[0]).resolve() for link in links(page))
        open_pages += [target for target in targets if target.suffix == ".md" and target.exists()]
        open_pages += [index for target in targets if (index := target / "README.md").exists()]
    lost = {page for page in set(PAGES) - reached if page.parent.name != "changelog.d"}
    assert sorted(str(page.relative_to(ROOT)) for page in lost) == []


def test_the_picture_of_the_rooms_is_the_tables() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "draw_rooms.py"))
    drawn = script["draw"]((ROOT / "docs" / "rooms.md").read_text("utf-8"))
    assert (ROOT / "docs" / "rooms.svg").read_text("utf-8") == drawn, "draw it again: scripts/draw_rooms.py"


def test_the_beginning_of_the_readme_is_enough() -> None:
    """In forty lines: a sentence, a picture, the reason in figures, the demo and the tests; it all stays short."""
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    beginning = "\n".join(lines[:40])
    assert len(lines) <= 150
    for needed in ("](docs/status.svg)", "git clone … && cd obatchd && scripts/demo", "scripts/test", "--kills 1000"):
        assert needed in beginning
    claimed = re.search(r"\[(\d+) % of the time or more\]\(bench/README.md#figures\)", beginning)
    measured = re.findall(r"busy slot time at [^|]*\| (\d\.\d+)", (ROOT / "bench" / "README.md").read_text("utf-8"))
    assert claimed and measured and int(claimed[1]) <= min(100 * float(figure) for figure in measured)


def test_the_second_terminal_of_the_first_hour_finds_the_commands() -> None:
    """Before, only the first one had the path, and a clean shell knew no obatchctl."""
    first_hour = (ROOT / "README.md").read_text("utf-8").partition("my workstation")[2].partition("3. Submit")[0]
    assert 'PATH="$PWD/.venv/bin:$PATH"' in first_hour and "OBATCH_SPOOL=~/batch" in first_hour


def test_the_picture_of_the_status_shows_four_busy_gpus_and_one_in_quarantine() -> None:
    shown = re.sub(r"&#160;", " ", (ROOT / "docs" / "status.svg").read_text("utf-8"))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", shown)
    assert sum(text.strip() == "ready" for text in texts) == 4 and sum("8/8" in text for text in texts) == 4
    assert sum(text.strip() == "quarantined" for text in texts) == 1
    assert "http" not in shown.replace("http://www.w3.org/2000/svg", ""), "a page loads nothing from elsewhere"
