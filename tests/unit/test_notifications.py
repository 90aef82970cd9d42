"""Submitters are told that their jobs are over: at least once, over restarts, and only who may be."""

from __future__ import annotations

import asyncio
import itertools
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_support import Chat, chat
from engine_support import Street, street, until
from yarl import URL

from obatchd.control.auth import Caller
from obatchd.errors import ConfigError
from obatchd.jobs.model import JobState
from obatchd.operations.jobs import JobCommands
from obatchd.settings.job import parse_job_settings
from obatchd.settings.tables.people import NotificationSettings, target_problem
from obatchd.telling import notifications
from obatchd.telling.allowed import problem, require_allowed
from obatchd.telling.notifications import Notifications

ANN = "mail:ann@example.org"
FAIL_LATER = "touch $0/begun; until [ -e $0/erased ]; do sleep 0.02; done; exit 1"
KEEP = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + ' ' + sys.stdin.read())"


def rules(*allow: str, **more: Any) -> NotificationSettings:
    return NotificationSettings(allow=list(allow), **{"mail_command": ["true"], **more})


def started(made: Street) -> Notifications:
    telling = Notifications(made.work)
    telling.start()
    return telling


def mails(out: Path) -> list[tuple[str, dict[str, Any]]]:
    lines = out.read_text().splitlines() if out.exists() else []
    return [(address, json.loads(rest)) for address, _, rest in (line.partition(" ") for line in lines)]


def owed(made: Street) -> dict[str, str]:
    return made.work.store.state.starting_with("notify/")


def tables(out: Path, service: Chat | None = None) -> dict[str, Any]:
    allow = ["*@example.org", *([f"127.0.0.1:{service.port}"] if service else [])]
    return {"notifications": {"allow": allow, "mail_command": [sys.executable, "-c", KEEP, str(out)]}}


async def test_the_end_of_a_job_is_told_by_mail_and_webhook(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "mails"
    async with chat() as service, street(monkeypatch, tmp_path, **tables(out, service)) as made:
        telling = started(made)
        row = await made.run("one", "two", notify=[ANN, service.url("S3CRET"), ANN])
        await until(lambda: service.got and not owed(made))
        [(address, told)] = mails(out)
        assert address == "ann@example.org"
        assert (told["kind"], told["job"], told["requests"], told["succeeded"]) == ("job_done", row.job, 2, 2)
        assert f"job {row.job} is done: 2 of 2 requests succeeded, in" in told["text"]
        assert told["text"].endswith(f"See it: obatchctl job {row.job}")
        [(path, posted)] = service.got
        assert path == "/S3CRET" and posted["job"] == row.job and posted["content"] == told["text"]
        silent = await made.run("three")
        assert silent.settings.notify is None and len(mails(out)) == 1
        await telling.stop()
    assert "S3CRET" not in caplog.text
    published = [path.read_text() for path in (tmp_path / "spool/outbox").rglob("*") if path.is_file()]
    assert published and not any("S3CRET" in text for text in published)


async def test_what_is_owed_is_told_after_a_restart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "mails"
    async with street(monkeypatch, tmp_path, **tables(out)) as made:
        await made.run("one", notify=[ANN])  # nobody tells anything: the daemon was killed here
        assert len(owed(made)) == 1 and mails(out) == []
    async with street(monkeypatch, tmp_path, **tables(out)) as made:
        telling = started(made)
        await until(lambda: not owed(made))
        assert len(mails(out)) == 1
        await telling.stop()


async def test_a_job_that_is_published_again_is_told_once_more_at_most(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "mails"
    async with street(monkeypatch, tmp_path, **tables(out)) as made:
        row = await made.run("one", notify=[ANN])
        telling = started(made)
        for _ in range(5):
            telling.job_over(row)
        await until(lambda: not owed(made))
        assert len(mails(out)) == 1
        await telling.stop()


async def test_who_cannot_be_reached_is_tried_again_and_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notifications, "_PAUSES_S", (0.0, 0.0, 0.0))
    async with chat() as service, street(monkeypatch, tmp_path, **tables(tmp_path / "x", service)) as made:
        telling = started(made)
        service.answers = [(503, "")] * 2
        await made.run("one", notify=[service.url("S3CRET")])
        await until(lambda: len(service.got) == 3 and not owed(made))
        service.answers = [(404, "no_team")] * 9
        row = await made.run("two", notify=[service.url("S3CRET")])
        await until(lambda: not owed(made))
        assert len(service.got) == 3 + 4
        [note] = made.row(row).notes
        assert note == (
            "nobody could be told through webhook at 127.0.0.1 that the job is over, and obatchd gave up after 4 "
            "tries: 127.0.0.1 answered 404: no_team"
        )
        assert (await made.published(row))["notes"] == [note]
        await telling.stop()
    assert "S3CRET" not in caplog.text


async def test_tries_are_kept_over_a_restart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = {"notifications": {"allow": ["*@example.org"], "mail_command": ["false"]}}
    async with street(monkeypatch, tmp_path, **failing) as made:
        telling = started(made)
        row = await made.run("one", notify=[ANN])
        assert all("notify" not in note for note in made.row(row).notes)
        await until(lambda: '"tries":1' in str(owed(made)))
        # Before, only the log said so, for 17 hours.
        [note] = JobCommands(made.engine).one(Caller(0, True), row.job).notes
        assert note.startswith("nobody could be told through mail to ann@example.org that the job is over, after 1 try")
        assert note.endswith("Z (it ended with exit code 1)")
        await telling.stop()
    out = tmp_path / "mails"
    async with street(monkeypatch, tmp_path, **tables(out)) as made:
        telling = started(made)  # its next try is due later
        await made.run("two", notify=[ANN])
        await until(lambda: len(owed(made)) == 1)
        assert '"tries":1' in str(owed(made)) and len(mails(out)) == 1
        await telling.stop()


async def test_a_webhook_that_hangs_holds_up_its_owner_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hang = "import sys, time; sys.argv[2].startswith('slow') and time.sleep(60); " + KEEP
    out = tmp_path / "mails"
    slow = {"notifications": {"allow": ["*@*"], "mail_command": [sys.executable, "-c", hang, str(out)]}}
    async with street(monkeypatch, tmp_path, **slow) as made:
        telling = started(made)
        await made.run("one", notify=["mail:slow@a.b"], owner=1)
        await made.run("two", notify=["mail:quick@a.b"], owner=2)
        await until(lambda: [address for address, _ in mails(out)] == ["quick@a.b"])
        await telling.stop()


async def test_an_erased_job_is_told_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "mails"
    async with street(monkeypatch, tmp_path, **tables(out)) as made:
        row = await made.run("one", notify=[ANN])
        other = await made.run("two", notify=["mail:bob@example.org"])
        await asyncio.to_thread(made.work.store.erase, [row])
        telling = started(made)
        await until(lambda: not owed(made))
        assert [(address, told["job"]) for address, told in mails(out)] == [("bob@example.org", other.job)]
        await telling.stop()
    assert ANN not in (tmp_path / "spool/work/state.db").read_bytes().decode("latin-1")


async def test_a_job_that_is_erased_while_it_is_told_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wait = {"allow": ["*@*"], "mail_command": ["sh", "-c", FAIL_LATER, str(tmp_path)]}
    monkeypatch.setattr(notifications, "_PAUSES_S", (0.0, 600.0))
    async with street(monkeypatch, tmp_path, notifications=wait) as made:
        telling = started(made)
        row = await made.run("one", notify=[ANN])
        await until((tmp_path / "begun").exists)
        await asyncio.to_thread(made.work.store.erase, [row])
        (tmp_path / "erased").touch()
        await until(lambda: not telling._owners)
        assert owed(made) == {}
        await telling.stop()


async def test_a_drop_that_is_refused_later_is_told_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "mails"
    async with street(monkeypatch, tmp_path, **tables(out)) as made:
        telling = started(made)
        row = made.accept(b"a,b\n1,2\n", name="bad.csv", notify=[ANN])
        await made.engine.intake.begin([row])
        await until(lambda: mails(out) and not owed(made))
        [(_, told)] = mails(out)
        assert told["kind"] == "job_refused" and told["text"].endswith(f"To see why: obatchctl job {row.job}")
        await telling.stop()


async def test_a_drop_whose_settings_cannot_be_read_is_refused_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with street(monkeypatch, tmp_path) as made:
        row, other = made.accept(b'{"prompt": "x"}\n', notify=[ANN]), made.accept(b'{"prompt": "y"}\n')
        (made.work.layout.job_dir(row.job) / "settings.json").write_bytes(b'{"settings": {"lines": "of later"}}')
        await made.engine.intake.begin([row, other])
        assert made.row(row).state is JobState.REFUSED and other.key in made.work.jobs


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("mail:eve@elsewhere.net", "mail to eve@elsewhere.net is not allowed on this host; allowed: *@example.org"),
        ("http://a\\b/", "notify: must be mail:ADDRESS or an http or https URL"),
        ("http://xn--a/", "webhook at xn--a is not allowed on this host"),
    ],
)
async def test_a_folder_whose_settings_name_who_may_not_be_told_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, words: str
) -> None:
    async with street(monkeypatch, tmp_path, **tables(tmp_path / "mails")) as made:
        told = f"notify = ['{target}']".encode()
        row = made.accept_folder({"a.jsonl": b'{"prompt": "x"}\n', "job.toml": told})
        await made.engine.intake.begin([row])
        [note] = made.row(row).notes
        assert words in note


@pytest.mark.parametrize(
    ("target", "allow", "words"),
    [
        (ANN, [], "nobody may be told on this host. An administrator says who may, with allow in [notifications]"),
        (ANN, ["ann@example.org"], ""),
        ("mail:Ann@Example.org", ["*@example.org"], ""),
        (ANN, ["*@lab.org", "hooks.slack.com"], "mail to ann@example.org is not allowed on this host; allowed: *@lab"),
        (ANN, ["*"], "mail to ann@example.org is not allowed"),
        ("https://hooks.slack.com/services/T/S3CRET", ["hooks.slack.com"], ""),
        ("https://hooks.slack.com./services/T", ["*.slack.com:443"], ""),
        ("https://hooks.slack.com:8443/services/T", ["*.slack.com:443"], "webhook at hooks.slack.com is not allowed"),
        ("https://evil.net/S3CRET", ["hooks.slack.com", "*@evil.net"], "webhook at evil.net is not allowed"),
        ("http://10.1.2.3:8065/x", ["10.1.2.3"], ""),
        ("http://10.1.2.3:8065/x", ["10.*"], "webhook at 10.1.2.3: 10.1.2.3 is at 10.1.2.3, which is no public"),
        ("http://10.1.2.3:8065/x", ["10.0.0.0/8"], "webhook at 10.1.2.3 is not allowed"),
        ("http://169.254.169.254/S3CRET", ["1*"], "webhook at 169.254.169.254: 169.254.169.254 is at"),
        ("https://hooks.xn--mller-kva.de/x", ["hooks.xn--mller-kva.de"], ""),
        ("http://[fd00::1]:8065/x", ["[fd00::1]:8065"], ""),
        ("https://me:pw@hooks.slack.com/", ["hooks.slack.com"], "webhook at hooks.slack.com: a URL with a user"),
    ],
)
def test_who_may_be_told(target: str, allow: list[str], words: str) -> None:
    if allow == ["*"]:
        with pytest.raises(ValueError, match="neither a host"):
            rules(*allow)
        return
    found = problem(target, rules(*allow))
    assert found.startswith(words) and bool(found) == bool(words)
    assert "S3CRET" not in found and "pw" not in found


def test_a_mail_that_nobody_can_send_is_refused_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        require_allowed([ANN], rules("*@example.org", mail_command=["/nowhere/mailer"]), "job.toml")
    assert error.value.message == (
        "job.toml: notify: mail cannot be sent from this host: there is no program /nowhere/mailer "
        "(mail_command in [notifications])"
    )


@pytest.mark.parametrize(
    "target",
    [
        "ann@example.org",
        "mail:",
        "mail:-X@a.b",
        "mail:a@b,c@d",
        "mail:a@b\nBcc: c@d",
        "ftp://x/y",
        "https://",
        "http://a b/",
        "http://a\\b/",
        "http://a\\@b/",
        "http://[abc]/",
        "http://[::1]x/",
        "http://a%b/",
        "http://a:70000/",
    ],
)
def test_what_is_nobody_to_be_told(target: str) -> None:
    with pytest.raises(ConfigError, match="notify: "):
        parse_job_settings({"notify": [target]}, "job.toml")
    good, _ = parse_job_settings({"notify": [ANN, "https://hooks.slack.com/services/x"]}, "job.toml")
    assert good.notify == [ANN, "https://hooks.slack.com/services/x"]


def test_whoever_can_be_named_has_a_host() -> None:
    """Else the part that reads a URL would end, and the daemon with it."""
    ends = ("".join(part) for length in range(5) for part in itertools.product("a1:.@[]\\%/?#-", repeat=length))
    named = [url for end in ends if not target_problem(url := f"http://{end}")]
    assert {"http://a", "http://a:1/", "http://a@a"} <= set(named)
    assert all(URL(url).raw_host for url in named)


async def test_the_addresses_stand_where_only_the_daemon_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with street(monkeypatch, tmp_path) as made:
        assert stat.S_IMODE(made.work.layout.work.stat().st_mode) & 0o077 == 0
