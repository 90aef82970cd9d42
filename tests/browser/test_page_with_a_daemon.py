"""The page before a real daemon with stand-in servers: what people do with it, and what others must not."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_support import Browser, link_of
from daemon_support import Document, jsonl, prompts, wait_for
from programs_support import Programs, for_all_tests

SIMULATOR = {"tokens_per_s": 200.0, "answer": {"tokens": 12}, "load_s": 0.1}
DROP = """
    // What was dropped as a browser hands it over: files, or a folder of them.
    await page.evaluate(({ selector, files }) => {
      const transfer = new DataTransfer();
      for (const [name, text, times] of files) transfer.items.add(new File(Array(times || 1).fill(text), name));
      const zone = document.querySelector(selector);
      const about = { dataTransfer: transfer, bubbles: true, cancelable: true };
      for (const kind of ['dragover', 'drop']) zone.dispatchEvent(new DragEvent(kind, about));
    }, { selector: '.zone', files: given.files });
"""

SLOW = """
    // Uploads at 20 MB/s.
    const session = await at.context.newCDPSession(page);
    await session.send('Network.enable');
    const limits = { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: 20e6 };
    await session.send('Network.emulateNetworkConditions', limits);
"""


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with for_all_tests(tmp_path_factory.mktemp("page"), simulator=SIMULATOR) as found:
        yield found


@pytest.fixture
def page(browser: Browser, door: Programs) -> Iterator[Browser]:
    """Signed in; at the end nothing went wrong, and nothing was asked elsewhere."""
    browser.sign_in(link_of(door.d))
    yield browser
    assert browser.trouble() == []
    assert browser.foreign(f"http://127.0.0.1:{door.port}") == []


def submit(page: Browser, name: str, requests: list[Document], *, sample: bool = False, **settings: str) -> str:
    """Drop a file and submit it; the id of the job."""
    page.view("submit", ".zone")
    page.run(DROP, files=[[name, jsonl(requests).decode()]])
    page.wait(f"text={name}")
    for field, value in settings.items():
        page.run("await page.locator(given.field).fill(given.value)", field=f"[name={field}]", value=value)
    if sample:
        page.click("[name=sample]")
    page.click("button.main")
    page.wait(f"li:has-text('{name}') a:has-text('job ')")
    link = page.run("return page.locator(given.of).getAttribute('href')", of=f"li:has-text('{name}') a")
    return str(link).rpartition("/")[2]


def jobs(door: Programs) -> dict[str, Document]:
    return {job["job"]: job for job in door.d.client.get("jobs")["jobs"]}


def test_a_link_works_once(browser: Browser, door: Programs) -> None:
    link = link_of(door.d)
    browser.sign_in(link)
    browser.context()
    browser.run("await page.goto(given.link)", link=link)
    browser.wait("text=The link was refused")
    assert "obatchctl web" in browser.text()


def test_signing_out_ends_the_session(browser: Browser, door: Programs) -> None:
    browser.sign_in(link_of(door.d))
    token = browser.run("return page.evaluate(() => sessionStorage.getItem('obatchd.token'))")
    browser.click("text=Sign out")
    browser.wait("text=Nobody is signed in")
    assert door.call("GET", "/obatchd/v1/page", Authorization=f"Bearer {token}").status == 401


def test_a_dropped_file_is_a_job_within_seconds_and_its_answers_stand_beside_the_prompts(
    page: Browser, door: Programs
) -> None:
    job = submit(page, "mine.jsonl", prompts(30, "look"), label="first look")
    page.view("jobs", "text=first look")
    page.click("text=first look")
    page.wait("text=Answers beside their prompts")
    wait_for(lambda: jobs(door)[job]["state"] == "done")
    page.wait("dd:has-text('done')")
    page.view("jobs")
    page.view(f"jobs/{job}", "li.answer >> nth=19")
    text = page.text("main")
    assert "30 / 30" in text and prompts(30, "look")[0]["prompt"] in text and "digest:" in text
    page.shoot("job")
    assert page.findings() == []
    page.click("text=Later →")
    page.wait("text=line 21")
    assert page.run("return page.locator('li.answer').count()") == 10
    page.click("text=← Earlier")
    page.wait("text=/line 1 /")


def test_a_job_that_comes_by_another_way_appears_within_three_seconds_and_its_progress_moves(
    page: Browser, door: Programs, tmp_path: Path
) -> None:
    page.view("jobs")
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_bytes(jsonl(prompts(900, "elsewhere")))
    made = door.d.control("submit", elsewhere)
    assert made.returncode == 0, made.stderr
    begun_s = time.monotonic()
    page.wait("tr:has-text('elsewhere.jsonl')")
    took_s = time.monotonic() - begun_s
    print(f"a job appears after {took_s:.1f} s")
    assert took_s <= 3
    seen = page.run(
        """
        // What the bar says, until all is answered; nothing is loaded anew.
        const said = [], row = page.locator("tr:has-text('elsewhere.jsonl')");
        while (!said.at(-1)?.startsWith('900 / 900')) {
          const text = await row.locator('.bar .in').innerText();
          if (text !== said.at(-1)) said.push(text);
          await page.waitForTimeout(50);
        }
        return said;
        """
    )
    moved = [text for text in seen if "read so far" not in text]  # as a first look may find it
    assert len(moved) >= 3 and all("/ 900" in text for text in moved)


def test_failures_are_shown_by_cause_with_advice_and_are_tried_again(page: Browser, door: Programs) -> None:
    door.d.faults({"kind": "status", "marker": "doomed", "status": 400, "message": "simulated"})
    job = submit(page, "some.jsonl", [*prompts(4, "good"), *prompts(3, "doomed")])
    wait_for(lambda: jobs(door)[job]["state"] == "done", 60)
    door.d.faults()
    assert jobs(door)[job]["failed"] == 3, jobs(door)[job]
    page.view(f"jobs/{job}", "text=Failures by cause")
    page.wait("td:has-text('simulated')")
    page.shoot("failures")
    assert page.findings() == []
    page.click("button.link")
    page.wait("h3:has-text('Why there is none')")
    assert page.run("return page.locator('li.answer').count()") == 3
    page.click("button:has-text('Retry')")
    page.wait("text=tried again as")
    again = [one for one in jobs(door).values() if one["retry_of"] == job]
    assert len(again) == 1


def test_a_job_is_paused_resumed_cancelled_and_removed(page: Browser, door: Programs) -> None:
    job = submit(page, "long.jsonl", prompts(2000, "long"))
    page.view(f"jobs/{job}", "button:has-text('Pause')")
    page.click("button:has-text('Pause')")
    page.wait("button:has-text('Resume')")
    assert jobs(door)[job]["paused"]
    page.wait("dd:has-text('paused')")
    page.click("button:has-text('Resume')")
    page.wait("button:has-text('Pause')")
    page.click("button:has-text('Cancel')")
    page.wait("dialog[open]")
    page.shoot("question")
    page.click("dialog button:has-text('No')")
    assert jobs(door)[job]["state"] == "running"
    page.click("button:has-text('Cancel')")
    page.click("dialog button.danger")
    page.wait("dd:has-text('cancelled')", 30)
    wait_for(lambda: jobs(door)[job]["state"] == "done")
    page.click("button:has-text('Remove')")
    page.click("dialog button.danger")
    page.wait("h1:has-text('Jobs')")
    wait_for(lambda: job not in jobs(door))


def test_twenty_are_tried_first_and_then_all(page: Browser, door: Programs) -> None:
    job = submit(page, "tried.jsonl", prompts(50, "tried"), sample=True)
    wait_for(lambda: jobs(door)[job]["state"] == "done")
    assert (jobs(door)[job]["requests"], jobs(door)[job]["sample_of"]) == (20, 50)
    page.click("text=Run all of it")
    whole = wait_for(
        lambda: next(
            (one for one in jobs(door).values() if one["name"] == "tried.jsonl" and one["sample_of"] is None), None
        )
    )
    wait_for(lambda: jobs(door)[whole["job"]]["state"] == "done")
    assert jobs(door)[whole["job"]]["requests"] == 50


def test_a_folder_is_one_job(page: Browser, door: Programs, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    (folder / ("deep" * 30)).mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(jsonl(prompts(3, "a")))
    (folder / ("deep" * 30) / "bä.jsonl").write_bytes(jsonl(prompts(4, "b")))
    (folder / ".hidden.jsonl").write_bytes(jsonl(prompts(5, "h")))
    page.view("submit", ".zone")
    page.run("await page.locator('input[webkitdirectory]').setInputFiles(given.folder)", folder=str(folder))
    page.wait("text=folder, 2 files")
    page.click("button.main")
    page.wait("li a:has-text('job ')")
    made = next(one for one in jobs(door).values() if one["name"].startswith("study"))
    wait_for(lambda: jobs(door)[made["job"]]["state"] == "done")
    assert jobs(door)[made["job"]]["succeeded"] == 7


def test_a_large_file_shows_its_progress_and_can_be_cancelled(page: Browser, door: Programs) -> None:
    page.view("submit", ".zone")
    line = json.dumps({"prompt": "x" * 1000}) + "\n"
    page.run(DROP, files=[["large.jsonl", line * 1000, 200]])  # 200 MB
    page.wait("text=large.jsonl")
    before = len(jobs(door))
    page.run(SLOW)
    page.click("button.main")
    page.wait("progress")
    page.run("await page.waitForFunction(() => document.querySelector('progress')?.value > 1e6)")
    page.shoot("upload")
    page.click("li button:has-text('Cancel')")
    page.wait("li:has-text('cancelled')")
    assert len(jobs(door)) == before
    assert json.loads(door.call("GET", "/v1/files").body)["data"] == []


LOST = """
    // The answers to the first calls that make a job get lost, after the daemon has made it.
    at.lost = 0;
    await page.route('**/obatchd/v1/jobs', async (route) => {
      if (route.request().method() !== 'POST' || at.lost >= given.calls) return route.continue();
      await route.fetch();
      at.lost++;
      await route.abort('connectionreset');
    });
"""


@pytest.mark.parametrize("calls", [1, 5])
def test_a_job_whose_answer_is_lost_is_made_once(page: Browser, door: Programs, calls: int) -> None:
    """It is asked for again by itself, five times; then by who pressed the button."""
    name = f"lost-{calls}.jsonl"
    page.view("submit", ".zone")
    page.run(LOST, calls=calls)
    page.run(DROP, files=[[name, jsonl(prompts(3, name)).decode()]])
    page.wait(f"text={name}")
    page.click("button.main")
    if calls == 5:
        page.wait(f"li:has-text('{name}'):has-text('obatchd does not answer')", 30)
        page.click(f"li:has-text('{name}') button:has-text('Try again')")
    page.wait(f"li:has-text('{name}') a:has-text('job ')")
    assert page.run("return at.lost") == calls
    made = [one for one in jobs(door).values() if one["name"] == name]
    assert len(made) == 1
    wait_for(lambda: jobs(door)[made[0]["job"]]["state"] == "done")
    said = page.run("return at.trouble.splice(0)")
    assert len(said) == calls and all("ERR_CONNECTION_RESET" in line for line in said), said


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_accessible_and_asks_nobody_else(page: Browser, door: Programs, scheme: str) -> None:
    page.run("await page.emulateMedia({ colorScheme: given.scheme })", scheme=scheme)
    for view in ("fleet", "jobs", "submit", "history", "burnin"):
        page.view(view)
        page.run("await page.waitForTimeout(800)")
        assert page.findings() == [], view
        assert re.search(r"obatchctl|Submit", page.text("main")), view


def test_eight_tabs_are_answered(page: Browser, door: Programs) -> None:
    counts = page.run(
        """
        const token = await page.evaluate(() => sessionStorage.getItem('obatchd.token'));
        const tabs = [];
        for (let number = 0; number < 8; number++) {
          const tab = await at.tab();
          await tab.addInitScript((token) => sessionStorage.setItem('obatchd.token', token), token);
          await tab.goto(page.url());
          tabs.push(tab);
        }
        for (const tab of tabs) await tab.waitForSelector('tbody tr');
        const counts = await Promise.all(tabs.map((tab) => tab.locator('tbody tr').count()));
        for (const tab of tabs) await tab.close();
        return counts;
        """
    )
    assert counts == [2] * 8


@pytest.mark.timeout(180)
def test_a_daemon_that_was_stopped_for_a_while_is_shown_as_stale(browser: Browser, door: Programs) -> None:
    browser.sign_in(link_of(door.d))
    process = door.d.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        browser.wait("text=No answer since", 14)  # though the call is still open
        browser.shoot("stale")
    finally:
        process.send_signal(signal.SIGCONT)
    browser.run("await page.waitForSelector('.stale', { state: 'detached', timeout: 40000 })")


def test_a_daemon_that_began_anew_asks_to_sign_in_again(browser: Browser, door: Programs) -> None:
    browser.sign_in(link_of(door.d))
    door.d.kill()
    browser.wait("text=No answer since", 25)
    browser.shoot("gone")
    assert browser.findings() == []
    door.d.start().ready()
    browser.wait("text=obatchctl web", 25)
    browser.run(
        "await page.locator('input[name=link]').fill(given.link); await page.keyboard.press('Enter')",
        link=link_of(door.d),
    )
    browser.wait("header")
