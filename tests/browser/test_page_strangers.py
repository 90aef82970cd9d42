"""What strangers send: prompts and answers that would like to be more than text, and a page of another port."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from browser_support import Browser, link_of
from daemon_support import Daemon, jsonl, prompts, wait_for
from front_support import Front, Page, front_of
from programs_support import Programs, for_all_tests, over_http

SCRIPT = "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'>"
ANSWER = f"{SCRIPT} see \u202egnp.exe\u202c and \u200fthis, \u05d0\u05d1\u05d2, before \u0000 after \u001b[31m red. "
ANSWERED = ANSWER + "word " * 200_000  # a megabyte
TALE = "</textarea></li>]]>-->{{7*7}}${7*7}javascript:alert(1)"
CHUNK = {
    "model": "tiny", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": ANSWERED},
    "done": True, "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 9, "total_duration": 10**7,
    "load_duration": 1, "prompt_eval_duration": 1, "eval_duration": 1,
}  # fmt: skip
FOREIGN = b"""<!doctype html><title>another page</title><form method=post enctype=text/plain></form>"""


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with for_all_tests(tmp_path_factory.mktemp("strangers")) as found:
        yield found


@pytest.mark.timeout(240)
def test_what_strangers_wrote_is_text(browser: Browser, door: Programs, make_daemon: Callable[..., Daemon]) -> None:
    with front_of(door.d.servers()[0]["url"]) as front:
        front.pages["/api/chat"] = Page(200, json.dumps(CHUNK).encode() + b"\n")
        servers = {"gpus": {"use": "none"}, "ollama_instances": {front.url: 0}}
        found = over_http(make_daemon, servers)
        d = found.d.start().ready()
        texts = {"a": ANSWER, "b": "word " * 200_000 + TALE}
        requests = [{"id": f"<b>{TALE}</b>{name}", "prompt": text} for name, text in texts.items()]
        (d.root / "hostile.jsonl").write_bytes(jsonl(requests))
        label = "<img src=x onerror=alert(1)>"
        made = d.control("submit", str(d.root / "hostile.jsonl"), "--label", label, "--context-length", "524288")
        assert made.returncode == 0, made.stdout
        [job] = wait_for(lambda: [one for one in d.client.get("jobs")["jobs"] if one["state"] == "done"], 60)
        assert job["succeeded"] == 2, job
        browser.sign_in(link_of(d), "jobs")
        browser.wait(f"text={label}")
        browser.view(f"jobs/{job['job']}", "li.answer >> nth=1")
        answer = browser.text("li.answer [aria-label=Answer]")
        for text in (answer, browser.text("li.answer [aria-label=Prompt]")):
            assert SCRIPT in text and "⟦U+202E⟧gnp.exe" in text and "⟦U+200F⟧" in text
            assert "⟦U+0000⟧" in text and "⟦U+001B⟧" in text and "\u202e" not in text
        assert f"<b>{TALE}</b>" in browser.text("li.answer") and label in browser.text("main")
        assert browser.run("return page.evaluate(() => window.hit)") is None
        inside = "main :is(script, img, iframe, object, textarea, b:has(b), form)"
        assert browser.run("return page.locator(given.inside).count()", inside=inside) == 0
        whole = f"text=Show all of it ({len(ANSWERED):,} characters)"
        browser.wait(whole)
        assert browser.run("return page.locator(given.whole).count()", whole=whole) == 2
        browser.click(whole)
        browser.wait("text=Show the beginning")
        assert len(browser.text("li.answer [aria-label=Answer]")) > 900_000
        browser.shoot("hostile")
        assert browser.findings() == []
        assert browser.trouble() == [] and browser.foreign(f"http://127.0.0.1:{found.port}") == []


@pytest.fixture
def elsewhere() -> Iterator[Front]:
    """A page of somebody else, on another port of this host."""
    with front_of("http://127.0.0.1:9") as found:
        found.pages |= {"/": Page(200, FOREIGN, (("Content-Type", "text/html"),)), "/favicon.ico": Page(404)}
        yield found


CALLS = """
    // As a page of another port may call: whether an answer can be read, and which status it has where that is so.
    return page.evaluate(async ({ url, token }) => {
      const said = {};
      const bearer = token ? { Authorization: `Bearer ${token}` } : {};
      for (const [name, method, path, headers, mode, body] of [
        ['read', 'GET', '/obatchd/v1/page', {}, 'cors'],
        ['read with the token', 'GET', '/obatchd/v1/page', bearer, 'cors'],
        ['cancel', 'POST', '/obatchd/v1/jobs/JOB/cancel', {}, 'no-cors'],
        ['cancel with the token', 'POST', '/obatchd/v1/jobs/JOB/cancel', bearer, 'cors'],
        ['open a session', 'POST', '/page/session', { 'Content-Type': 'text/plain' }, 'no-cors', '{"code":"x"}'],
        ['the page itself', 'GET', '/', {}, 'cors'],
      ]) {
        try {
          const answer = await fetch(url + path, { method, headers, mode, body });
          said[name] = answer.type === 'opaque' ? 'opaque' : answer.status;
        } catch { said[name] = 'refused'; }
      }
      const frame = document.createElement('iframe');
      frame.src = url;
      document.body.append(frame);
      await new Promise((resolve) => { frame.onload = resolve; setTimeout(resolve, 3000); });
      said.frame = frame.contentDocument ? 'open' : 'shut';
      said.storage = sessionStorage.length + localStorage.length + document.cookie.length;
      return said;
    }, given);
"""


def test_a_page_of_another_port_reads_and_does_nothing(browser: Browser, door: Programs, elsewhere: Front) -> None:
    door.d.drop("mine.jsonl", prompts(2000, "mine"))
    wait_for(lambda: door.d.client.get("jobs")["jobs"])
    browser.sign_in(link_of(door.d), "jobs")
    token = browser.run("return page.evaluate(() => sessionStorage.getItem('obatchd.token'))")
    [shown] = door.d.client.get("jobs")["jobs"]
    browser.run("await page.goto(given.url)", url=elsewhere.url)
    calls = CALLS.replace("JOB", shown["job"])
    url = f"http://127.0.0.1:{door.port}"
    said = browser.run(calls, url=url, token=token)
    refused = {name: word for name, word in said.items() if word not in ("refused", "opaque")}
    assert refused == {"frame": "shut", "storage": 0}
    assert said["read"] == said["read with the token"] == said["cancel with the token"] == "refused"
    # By another name, as after a DNS rebinding, the page would be of one origin with the daemon; but it has that Host.
    asked = door.call("POST", f"/obatchd/v1/jobs/{shown['job']}/cancel", Host=f"evil.example:{door.port}")
    assert asked.status == 421
    [after] = door.d.client.get("jobs")["jobs"]
    assert after["state"] != "cancelling" and after["cancelled"] == 0
    sessions = door.d.control("web", "--logout")
    assert sessions.returncode == 0 and "1" in sessions.stdout, "nothing opened another session"
