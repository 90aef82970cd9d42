"""The Python client on another host: over HTTP with a key, and what of it another user or a wrong key gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, wait_for
from programs_support import Programs, certificate, for_all_tests, over_http

# The same tests hold for both ways: ``client`` is the one below here.
from test_python_client import (  # noqa: F401 - collected here
    BROKEN,
    submit_over_a_kill,
    test_a_path_is_handed_over_as_it_is,
    test_a_table_of_arrow_goes_in_and_comes_out,
    test_a_type_of_pydantic_comes_back_as_instances,
    test_requests_settings_and_fields_of_ones_own_are_passed_on,
    test_rows_of_a_data_frame_are_data,
    test_texts_become_answers_in_their_order,
    test_what_cannot_become_a_job_says_why,
    wait_over_a_kill,
)

from obatchd.client import AsyncClient, Client
from obatchd.errors import ConfigError, ControlError, DaemonDownError, ForbiddenError, NotOverError

Make = Callable[..., Daemon]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """One daemon for all tests that leave it as it was."""
    with for_all_tests(tmp_path_factory.mktemp("remote")) as found:
        yield found


def remote(programs: Programs, **more: Any) -> Client:
    return Client(url=f"http://127.0.0.1:{programs.port}", **{"key": programs.key, **more})


@pytest.fixture
def client(programs: Programs) -> Client:
    return remote(programs)


def test_nothing_of_a_submission_is_left_but_its_job(programs: Programs, client: Client) -> None:
    job = client.submit(["once?"]).wait(progress=False)
    with programs.client() as official:
        assert list(official.files.list()) == []
    assert job.outbox is not None and sorted(file.name for file in job.outbox.iterdir()) == [
        "errors.jsonl", "results.jsonl", "summary.json",
    ]  # fmt: skip
    assert client.status().state == "running" and [model.name for model in client.models()]


async def test_the_client_for_asyncio(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBATCH_URL", f"http://localhost:{programs.port}/")
    monkeypatch.setenv("OBATCH_KEY", programs.key)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    job = await AsyncClient().submit(["one?", "two?"])
    await job.wait(progress=False)
    assert [answer.prompt async for answer in await job.results()] == ["one?", "two?"]


def test_a_running_job_gives_answers_so_far_and_is_cancelled(make_daemon: Make) -> None:
    found = over_http(make_daemon, simulator={"faults": [BROKEN, {"kind": "hang", "marker": "stuck"}]})
    found.d.start().ready()
    job = remote(found).submit(["good 1", "bad 2", "stuck 3"])
    wait_for(lambda: (job.status().succeeded, job.status().failed) == (1, 1))
    with pytest.raises(NotOverError):
        job.results()
    assert [(one.prompt, one.ok) for one in job.results(so_far=True)] == [("good 1", True), ("bad 2", False)]
    [failure] = job.failures(so_far=True)
    assert failure.error is not None and failure.error.code == "bad_request"
    job.cancel().wait(progress=False)
    assert [one.outcome for one in job.results()] == ["succeeded", "failed", "cancelled"]


def test_failures_and_a_retry(make_daemon: Make) -> None:
    found = over_http(make_daemon, simulator={"faults": [BROKEN]})
    found.d.start().ready()
    job = remote(found).submit(["good 1", "bad 2"]).wait(progress=False)
    [failure] = job.failures()
    assert failure.error is not None and failure.error.advice.startswith("mend the request")
    found.d.faults()
    again = job.retry().wait(progress=False)
    assert [one.job for one in job.results()] == [job.id, again.id] and list(job.failures()) == []
    # Somebody else starts anew: nothing is read that this one has copied.
    assert len(list(remote(found).job(job.id).results())) == 2
    found.d.stop()
    with pytest.raises(DaemonDownError, match="Does it run, and listen there"):
        remote(found).status()


def test_wrong_addresses_and_keys_are_told_apart(programs: Programs, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{programs.port}"
    with pytest.raises(ForbiddenError, match="Incorrect API key"):
        Client(url=url, key="obk_no").submit(["a"])
    with pytest.raises(ConfigError, match="needs a key; on that host:  obatchctl key add"):
        Client(url=url)
    for wrong in ("gpu.example.org:8434", "ftp://gpu.example.org", "http://", "https://gpu.example.org:x"):
        with pytest.raises(ConfigError, match="is no address"):
            Client(url=wrong, key="obk_a")
    with pytest.raises(ConfigError, match="others on the way could read your key"):
        Client(url="http://192.0.2.1:8434", key="obk_a")
    with pytest.raises(ControlError, match="both name a daemon"):
        Client(tmp_path, url=url)
    with pytest.raises(ConfigError, match="no certificates can be read"):
        Client(url="https://127.0.0.1:1", key="obk_a", ca=tmp_path / "none.pem")
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(ConfigError, match="no certificates can be read"):
        Client(url="https://127.0.0.1:1", key="obk_a", ca=tmp_path / "ca.pem")
    with pytest.raises(ForbiddenError, match="this key is good for inference, and not for batches"):
        remote(programs, key=programs.make_key("--scope", "inference")).jobs()


def test_tls_is_checked_against_an_authority_of_ones_own(make_daemon: Make, tmp_path: Path) -> None:
    (chain, key), (other, _) = certificate(tmp_path, "own"), certificate(tmp_path, "other")
    found = over_http(make_daemon, {"http": {"tls_certificate": str(chain), "tls_key": str(key)}})
    found.d.start().ready()
    url = f"https://127.0.0.1:{found.port}"
    client = Client(url=url, key=found.key, ca=chain)
    assert [one.prompt for one in client.submit(["once?"]).wait(progress=False).results()] == ["once?"]
    for ca in (None, other):
        with pytest.raises(ControlError, match=r"is not good: .*ca= names one to trust") as untrusted:
            Client(url=url, key=found.key, ca=ca).status()
        assert untrusted.value.code == "certificate"


def test_a_key_that_is_removed_ends_the_wait(make_daemon: Make) -> None:
    found = over_http(make_daemon, simulator={"faults": [{"kind": "hang", "marker": "stuck"}]})
    found.d.start().ready()
    made = json.loads(found.d.control("key", "add", "--json").stdout)
    job = remote(found, key=made["key"]).submit(["stuck"])
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            job.wait(progress=False)
        except ForbiddenError as error:
            ended.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert found.d.control("key", "rm", made["about"]["id"]).returncode == 0
    waiting.join(30)
    assert len(ended) == 1 and [one.id for one in Client(found.d.spool).jobs()] == [job.id]


@pytest.mark.parametrize("point", ["submit.after_accept", "files.after_write"])
def test_one_call_makes_one_job_when_the_daemon_is_killed(make_daemon: Make, point: str) -> None:
    found = over_http(make_daemon)
    found.d.start(crash_at=point).ready()
    submit_over_a_kill(found.d, remote(found))


def test_waiting_survives_a_daemon_that_is_killed(make_daemon: Make) -> None:
    found = over_http(make_daemon, simulator={"tokens_per_s": 60})
    found.d.start().ready()
    wait_over_a_kill(found.d, remote(found))


def test_what_is_no_upload_becomes_no_job(programs: Programs) -> None:
    with programs.client() as official:
        file = official.files.create(file=("a.jsonl", b'{"prompt": "a"}\n'), purpose="batch").id

    def refused(**body: Any) -> tuple[int, str]:
        answer = programs.call("POST", "/obatchd/v1/jobs", {"file": file, "name": "a.jsonl", **body})
        return answer.status, answer.error["code"]

    assert refused(file="file-none") == (409, "no_upload")
    assert refused(file="file-20260101-000000-aaaa-output") == (400, "bad_request")
    for name in ("../a", "", "a/b", "x" * 300, "a\0"):
        assert refused(name=name) == (400, "bad_request")
    assert refused(token="x" * 65) == (400, "bad_request")
    assert refused(settings={"wehn": 1})[0] == 400
    assert refused(surprise=1) == (400, "bad_request")
    assert programs.call("POST", "/obatchd/v1/jobs", b"no").status == 400
    with programs.client() as official:
        assert official.files.retrieve(file).id == file  # what was refused can be submitted again
        official.files.delete(file)
    for name in ("../summary.json", "status.json", ".part"):
        assert programs.call("GET", f"/obatchd/v1/jobs/none/files/{name}").status == 404
    assert programs.call("GET", "/obatchd/v1/jobs/none/files/so-far.jsonl").status == 404


READING = """
import resource, sys
from obatchd.client import Client
job = Client().job("many")
before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(answer.ok for answer in job.results()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb)
"""


def test_many_results_are_read_in_constant_memory(programs: Programs, client: Client) -> None:
    count = 30_000
    client.submit((f"What is {i}?" for i in range(count)), label="many", max_response_tokens=1).wait(progress=False)
    variables = {**os.environ, "OBATCH_URL": f"http://127.0.0.1:{programs.port}", "OBATCH_KEY": programs.key}
    done = subprocess.run([sys.executable, "-c", READING], env=variables, capture_output=True, text=True, check=True)
    read, grown_kb = map(int, done.stdout.split())
    assert read == count and grown_kb < 16 * 1024


def test_who_is_no_administrator_gets_no_list_of_all(programs: Programs, client: Client) -> None:
    with pytest.raises(ForbiddenError, match="only administrators see the jobs of others"):
        client.jobs(everyone=True)
