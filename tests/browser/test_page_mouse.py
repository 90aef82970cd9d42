"""Files and folders that a mouse drags from the desktop onto the page, as Chromium gets them from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_support import Browser, link_of
from daemon_support import Document, jsonl, prompts, wait_for
from programs_support import Programs, for_all_tests

SIMULATOR = {"tokens_per_s": 2000.0, "answer": {"tokens": 5}, "load_s": 0.1}
DRAG = """
    // From outside of the window over the zone, and let go there.
    at.cdp ??= await at.context.newCDPSession(page);
    const box = await page.locator('.zone').boundingBox();
    const place = { x: box.x + box.width / 2, y: box.y + box.height / 2 };
    const data = { items: [], files: given.paths, dragOperationsMask: 1 };
    const drag = (type) => at.cdp.send('Input.dispatchDragEvent', { type, data, ...place });
    for (const type of ['dragEnter', 'dragOver']) await drag(type);
    await page.waitForSelector('.zone.over');
    await drag('drop');
    await page.waitForSelector('.zone:not(.over)');
"""
SEEN = """
    // Every value that the bar of progress has until it is gone.
    return page.evaluate(() => new Promise((resolve) => {
      const seen = [];
      const look = () => {
        const bar = document.querySelector('progress');
        if (bar && bar.value !== seen.at(-1)) seen.push(bar.value);
        if (!bar && seen.length) resolve(seen);
        else setTimeout(look, 20);
      };
      look();
      document.querySelector('button.main').click();
    }));
"""
MB = 1_000_000


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with for_all_tests(tmp_path_factory.mktemp("mouse"), simulator=SIMULATOR) as found:
        yield found


@pytest.fixture
def page(browser: Browser, door: Programs) -> Iterator[Browser]:
    browser.sign_in(link_of(door.d))
    browser.view("submit", ".zone")
    yield browser
    assert browser.trouble() == []
    assert browser.foreign(f"http://127.0.0.1:{door.port}") == []


def over(door: Programs, name: str) -> Document:
    """The job of this name, once it is done."""

    def look() -> Document:
        found = [job for job in door.d.client.get("jobs")["jobs"] if job["name"].startswith(name)]
        return found[0] if found and found[0]["state"] == "done" else {}

    return wait_for(look, 60)


def test_a_folder_is_dragged_with_the_mouse(page: Browser, door: Programs, tmp_path: Path) -> None:
    folder = tmp_path / "dragged"
    deep = folder / "a" / ("deep" * 30)
    deep.mkdir(parents=True)
    for number in range(120):  # a browser hands over a hundred at a time
        (folder / f"{number:03d}.jsonl").write_bytes(jsonl(prompts(1, f"n{number}")))
    (deep / "bä 中.jsonl").write_bytes(jsonl(prompts(4, "deep")))
    (folder / ".hidden.jsonl").write_bytes(jsonl(prompts(5, "hidden")))
    page.run(DRAG, paths=[str(folder)])
    page.wait("text=folder, 121 files")
    page.shoot("dragged")
    page.click("button.main")
    page.wait("li a:has-text('job ')")
    job = over(door, "dragged")
    assert (job["requests"], job["succeeded"]) == (124, 124)


def test_two_files_dragged_with_the_mouse_are_two_jobs(page: Browser, door: Programs, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.jsonl", "two.csv")]
    paths[0].write_bytes(jsonl(prompts(3, "one")))
    paths[1].write_text("prompt\nfirst\nsecond\n")
    page.run(DRAG, paths=list(map(str, paths)))
    page.wait("button:has-text('Submit 2 jobs')")
    page.click("button.main")
    page.wait("li:has-text('two.csv') a:has-text('job ')")
    assert (over(door, "one")["succeeded"], over(door, "two")["succeeded"]) == (3, 2)


def test_a_file_of_200_mb_arrives_whole_and_its_progress_goes_up(page: Browser, door: Programs, tmp_path: Path) -> None:
    large = tmp_path / "large.jsonl"
    with large.open("w") as file:
        for number in range(200):
            file.write(json.dumps({"id": f"r{number}", "prompt": f"{number}" + "x" * MB}) + "\n")
    page.run(DRAG, paths=[str(large)])
    page.wait("text=200 MB")
    seen = page.run(SEEN)
    assert len(seen) > 2 and seen == sorted(seen) and seen[-1] > 100 * MB  # few on a fast machine
    page.wait("li a:has-text('job ')", 60)
    assert over(door, "large")["requests"] == 200
    [claimed] = (door.d.spool / "work" / "jobs").glob(f"{over(door, 'large')['job']}/input*")
    sizes = [path.stat().st_size for path in ([claimed] if claimed.is_file() else claimed.rglob("*"))]
    assert large.stat().st_size in sizes
