"""The Python client on a whole daemon with stand-ins, as a script uses it."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import doctest
import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest
from daemon_support import Daemon, digest, wait_for
from programs_support import certificate
from pydantic import BaseModel, Field

from obatchd.client import AsyncClient, Client
from obatchd.client import asynchronous as asynchronous_module
from obatchd.client import jobs as jobs_module
from obatchd.client.transport import Document, Sockets
from obatchd.errors import ConfigError, ControlError, DaemonDownError, NotFoundError, NotOverError, ObatchError

DOCS, EXAMPLES = (Path(__file__).parents[2] / name for name in ("docs", "etc/examples"))
Start = Callable[..., Daemon]
BROKEN = {"kind": "status", "status": 400, "message": "no", "marker": "bad"}


class Person(BaseModel):
    """As people write one for a schema."""

    name: str
    age: int


class Adult(Person):
    """One that fewer answers fit."""

    age: int = Field(ge=18)


@pytest.fixture
def client(plain: Daemon) -> Client:
    return Client(plain.spool)


@pytest.mark.parametrize("module", [jobs_module, asynchronous_module])
def test_the_examples_in_the_docstrings_are_true(plain: Daemon, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """In the order in which they stand: each class's first, then its methods', with what those before have made."""
    monkeypatch.setenv("OBATCH_SPOOL", str(plain.spool))
    names: dict[str, Any] = {}
    runner = doctest.DocTestRunner()
    found = doctest.DocTestFinder(exclude_empty=True).find(module)
    for test in sorted(found, key=lambda test: test.lineno or 0):
        test.globs = names  # one script from top to bottom
        runner.run(test, clear_globs=False)
    assert runner.tries >= 1 and runner.failures == 0


def test_texts_become_answers_in_their_order(client: Client) -> None:
    job = client.submit(["First?", "Zweite – größte?", "Third?"]).wait(progress=False)
    answers = list(job.results())
    assert [answer.prompt for answer in answers] == ["First?", "Zweite – größte?", "Third?"]
    assert [answer.text.split()[0] for answer in answers] == [digest(str(answer.prompt)) for answer in answers]
    assert [answer.line for answer in answers] == [1, 2, 3] and all(answer.ok for answer in answers)
    assert all(answer.server in ("gpu0", "gpu1") and answer.model == "tiny" for answer in answers)
    assert all((answer.prompt_tokens or 0) > 0 and (answer.response_tokens or 0) > 0 for answer in answers)
    assert list(job.failures()) == [] and job.state == "done"
    assert repr(job).startswith(f"<Job {job.id} prompts.jsonl: done, 3 succeeded>")


def test_requests_settings_and_fields_of_ones_own_are_passed_on(client: Client) -> None:
    asked: Iterator[dict[str, Any]] = ({"id": f"n{i}", "prompt": f"What is {i}?", "ward": i} for i in range(3))
    job = client.submit(
        asked, label="wards", temperature=0, max_response_tokens=7, options={"top_k": 3}, priority="low"
    )
    assert [(one.id, one.input) for one in job.wait(progress=False).results()] == [
        (f"n{i}", {"ward": i}) for i in range(3)
    ]
    known = job.status()
    assert known.details is not None and known.details.settings.options == {"top_k": 3, "temperature": 0}
    assert (known.label, known.priority, known.details.settings.max_response_tokens) == ("wards", "low", 7)
    assert client.job("wards").id == job.id
    assert job.id in [one.id for one in client.jobs(state="done")]


def test_a_path_is_handed_over_as_it_is(client: Client, tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("mrn,note\nM1,one\nM2,two\n")
    job = client.submit(tmp_path / "notes.csv", text_column="note", id_column="mrn").wait(progress=False)
    assert [(one.id, one.prompt) for one in job.results()] == [("M1", "one"), ("M2", "two")]
    assert job.name == "notes.csv"
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    (folder / "deep" / "b.txt").write_text("second")
    assert {one.prompt for one in client.submit(str(folder)).wait(progress=False).results()} == {"first", "second"}


def test_rows_of_a_data_frame_are_data(client: Client) -> None:
    frame = pandas.DataFrame(
        {
            "note": ["a man", "a girl", None],
            "model": ["Ford", "Opel", "Fiat"],  # data, and no setting
            "weight": [1.5, 2.25, float("nan")],
            "seen": pandas.to_datetime(["2026-01-01", "2026-01-02", "2026-01-03"]),
        },
        index=[7, 3, 9],
    )
    job = client.submit(frame, template="Who? {note}").wait(progress=False)
    table = job.results().to_pandas()
    assert list(table["prompt"][:2]) == ["Who? a man", "Who? a girl"]
    assert list(table["input.model"]) == ["Ford", "Opel", "Fiat"] and list(table["model"][:2]) == ["tiny", "tiny"]
    assert list(table["weight"][:2]) == [1.5, 2.25] and str(table["seen"][0]).startswith("2026-01-01")
    assert list(table["outcome"]) == ["succeeded", "succeeded", "failed"]
    assert list(table["code"])[2] == "missing_field"
    assert str(table["response_tokens"].dtype) == "Int64" and table["response_tokens"][0] > 0
    assert len(job.failures().to_pandas()) == 1
    with pytest.raises(ControlError, match="the columns are note, model, weight, seen: say which one") as unsaid:
        client.submit(frame)
    assert unsaid.value.code == "no_prompts"


def test_a_table_of_arrow_goes_in_and_comes_out(client: Client) -> None:
    table = pyarrow.table({"id": ["x", "y"], "prompt": ["one", "two"], "options": ["red", "blue"]})
    job = client.submit(table).wait(progress=False)
    made = job.results().to_arrow()
    assert made.column("id").to_pylist() == ["x", "y"] and made.column("options").to_pylist() == ["red", "blue"]
    assert made.column("prompt").to_pylist() == ["one", "two"]
    assert made.schema.field("response_tokens").type == pyarrow.int64()
    assert all(text.startswith("digest:") for text in made.column("response").to_pylist())


def test_a_type_of_pydantic_comes_back_as_instances(client: Client) -> None:
    job = client.submit(["A man of 61.", "A girl, 9."], schema=Person).wait(progress=False)
    people = [answer.data for answer in job.results()]
    assert all(isinstance(person, Person) for person in people) and len(people) == 2
    # A stricter type later: each answer that does not fit says so, and keeps its text.
    strict = client.job(job.id, schema=Adult)
    young = [person for person in people if person and person.age < 18]
    assert young  # a stand-in's numbers are small
    unfit = list(strict.failures())
    assert len(unfit) == len(young) and len(list(strict.results())) == 2
    for answer in unfit:
        assert answer.error is not None and answer.error.code == "not_valid" and answer.data is None
        assert "age: Input should be greater than or equal to 18" in answer.error.message and answer.error.advice
        assert answer.outcome == "succeeded" and json.loads(answer.text)["age"] < 18
    assert strict.failures().to_arrow().column("code").to_pylist() == ["not_valid"] * len(unfit)
    # A JSON Schema gives plain data.
    plain = client.submit(["A dog."], schema=Person.model_json_schema()).wait(progress=False)
    [dog] = plain.results()
    assert set(dog.data) == {"name", "age"}
    with pytest.raises(ControlError, match="give one of them"):
        client.submit(["a"], schema=Person, format="json")


def test_failures_say_what_to_do_and_a_retry_joins_their_answers(daemon: Start) -> None:
    d = daemon(simulator={"faults": [BROKEN]})
    client = Client(d.spool)
    job = client.submit(["good 1", "bad 2", "good 3", "bad 4"]).wait(progress=False)
    failures = list(job.failures())
    assert [(one.prompt, one.outcome, one.text) for one in failures] == [
        ("bad 2", "failed", ""),
        ("bad 4", "failed", ""),
    ]
    for one in failures:
        assert one.error is not None and one.error.code == "bad_request"
        assert one.error.message and one.error.advice.startswith("mend the request")
    assert [one.ok for one in job.results()] == [True, False, True, False]
    d.faults()
    again = job.retry(temperature=0)
    assert again.id != job.id
    again.wait(progress=False)
    assert list(job.failures()) == []
    assert [one.job for one in job.results()] == [job.id, again.id, job.id, again.id]
    assert [one.prompt for one in again.results()] == ["bad 2", "bad 4"]
    with pytest.raises(ControlError, match="was answered by a retry") as nothing:
        job.retry()
    assert nothing.value.code == "nothing"
    # What is over can be read while the daemon is down; what needs it says what to type.
    d.stop()
    assert [one.prompt for one in again.results()] == ["bad 2", "bad 4"]
    with pytest.raises(DaemonDownError, match="To start it: obatchd "):
        Client(d.spool).submit(["a"])
    with pytest.raises(DaemonDownError, match="There is no spool"):
        Client(d.root / "elsewhere").status()


def test_a_running_job_gives_answers_so_far_and_is_cancelled(daemon: Start) -> None:
    d = daemon(simulator={"faults": [{"kind": "hang", "marker": "stuck"}]})
    client = Client(d.spool)
    job = client.submit(["quick 1", "quick 2", "stuck 3"])
    with pytest.raises(NotOverError, match="so_far=True") as running:
        job.results()
    assert running.value.code == "not_over"
    wait_for(lambda: job.status().succeeded == 2)
    wait_for(lambda: len(list(job.results(so_far=True))) == 2)
    with pytest.raises(NotOverError, match="not over after 0 s"):
        job.wait(progress=False, timeout_s=0.2)
    with pytest.raises(ControlError, match="not over yet"):
        job.retry()
    job.cancel().wait(progress=False)
    assert [one.outcome for one in job.results()] == ["succeeded", "succeeded", "cancelled"]
    [cancelled] = job.failures()
    assert cancelled.error is not None and cancelled.error.code == "cancelled"
    assert job.cancel().state == "done"


def test_what_cannot_become_a_job_says_why(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="A text is taken for a path"):
        client.submit("Why is the sky blue?")
    for nothing in ([], iter(())):
        with pytest.raises(ControlError, match="there is no prompt"):
            client.submit(nothing)
    with pytest.raises(ControlError, match="number 2 of what was given is of the type int"):
        client.submit(["a", 7])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="wehn: no such job setting"):
        client.submit(["a"], wehn=7)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="contxt_length: no such setting; did you mean context_length"):
        client.submit(["a"], contxt_length=7)  # type: ignore[call-overload]
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(ObatchError, match="PDF"):
        client.submit(tmp_path / "x.pdf")
    with pytest.raises(NotFoundError, match="no job nothing-of-that-name"):
        client.job("nothing-of-that-name")


def test_libraries_that_are_missing_are_named_with_the_command(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job = client.submit(["a"]).wait(progress=False)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name in ("pandas", "pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for library, convert in (("pandas", job.results().to_pandas), ("pyarrow", job.results().to_arrow)):
        with pytest.raises(Exception, match=f"needs the library {library}.*pip install {library}") as missing:
            convert()
        assert getattr(missing.value, "code", None) == f"no_{library}"


def wait_over_a_kill(d: Daemon, client: Client) -> None:
    """One wait, in the middle of which the daemon is killed; every answer is there then."""
    prompts = [f"What is {i}?" for i in range(80)]
    job = client.submit(prompts)
    ended: list[Any] = []
    waiting = threading.Thread(target=lambda: ended.append(job.wait(progress=False)))
    waiting.start()
    wait_for(lambda: d.succeeded() > 3)
    d.kill()
    d.start()
    waiting.join(60)
    assert ended == [job]
    assert [one.prompt for one in job.results()] == prompts and all(one.ok for one in job.results())


def submit_over_a_kill(d: Daemon, client: Client) -> None:
    """One call to submit, to a daemon that kills itself meanwhile, which makes one job."""
    assert client.status().state == "running"
    made: list[Any] = []
    submitting = threading.Thread(target=lambda: made.append(client.submit(["once?"], label="once")))
    submitting.start()
    assert d.process is not None
    d.process.wait(30)
    d.start()
    submitting.join(60)
    [job] = made
    assert [one.prompt for one in job.wait(progress=False).results()] == ["once?"]
    assert [one.id for one in client.jobs()] == [job.id]


def test_waiting_survives_a_daemon_that_is_killed(make_daemon: Start) -> None:
    d = make_daemon(simulator={"tokens_per_s": 60}).start().ready()
    wait_over_a_kill(d, Client(d.spool))


def test_one_call_makes_one_job_when_the_daemon_is_killed_as_it_accepts(make_daemon: Start) -> None:
    d = make_daemon().start(crash_at="submit.after_accept").ready()
    submit_over_a_kill(d, Client(d.spool))


def test_obatchctl_makes_one_job_when_the_daemon_is_killed_as_it_accepts(make_daemon: Start, tmp_path: Path) -> None:
    d = make_daemon().start(crash_at="submit.after_accept").ready()
    (tmp_path / "once.jsonl").write_text('{"prompt": "once?"}\n')
    ran: list[subprocess.CompletedProcess[str]] = []
    submitting = threading.Thread(
        target=lambda: ran.append(d.control("submit", tmp_path / "once.jsonl", "--wait", timeout_s=90))
    )
    submitting.start()
    assert d.process is not None
    d.process.wait(30)
    d.start()
    submitting.join(90)
    assert ran[0].returncode == 0 and "obatchd does not answer; waiting 2 min" in ran[0].stderr
    [job] = Client(d.spool).jobs()
    assert job.id in ran[0].stdout and job.state == "done"


class Losing(Sockets):
    """Loses the daemon's answer to a submission, or to a retry, so often."""

    def __init__(self, spool: Path, times: int) -> None:
        super().__init__(spool)
        self.left = times

    def _lose(self) -> None:
        if self.left:
            self.left -= 1
            raise ControlError("the other side went away", code="handover_broken")

    def submit(self, path: Path, settings: Document, token: str = "", *, again: bool = False) -> Document:
        document = super().submit(path, settings, token, again=again)
        self._lose()
        return document

    def post(self, path: str, *names: str, body: Document | None = None, **query: str | float | None) -> Document:
        document = super().post(path, *names, body=body, **query)
        self._lose()
        return document


def test_an_answer_that_is_lost_makes_no_second_job(daemon: Start) -> None:
    d = daemon(simulator={"faults": [BROKEN]})
    client = Client(transport=Losing(d.spool, 2))
    job = client.submit(["bad 1", "good 2"]).wait(progress=False)
    assert [one.id for one in client.jobs()] == [job.id]
    d.faults()
    retrying = Client(transport=Losing(d.spool, 1)).job(job.id)
    again = retrying.retry()
    again.wait(progress=False)
    assert {one.id for one in client.jobs()} == {job.id, again.id}
    assert all(one.ok for one in job.results())
    # The same prompts in another call are another job.
    assert client.submit(["bad 1", "good 2"]).id not in (job.id, again.id)


async def test_fifty_jobs_at_once(plain: Daemon) -> None:
    client = AsyncClient(plain.spool)

    async def ask(number: int) -> list[str | None]:
        job = await client.submit([f"job {number}: a", f"job {number}: b"], label=f"async-{number}")
        await job.wait()
        return [answer.prompt async for answer in await job.results()]

    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beating = asyncio.create_task(beat())
    async with asyncio.timeout(100):
        found = await asyncio.gather(*map(ask, range(50)))
    beating.cancel()
    assert found == [[f"job {number}: a", f"job {number}: b"] for number in range(50)]
    assert beats > 20  # the event loop was never held up
    job = await client.job("async-7", schema=Person)
    assert [answer.error.code async for answer in await job.failures() if answer.error] == ["not_valid"] * 2
    assert (await (await job.results()).to_arrow()).num_rows == 2
    assert (await (await job.cancel()).status()).state == "done"
    assert len(await client.jobs(label="async-7")) == 1 and (await client.status()).state == "running"
    assert any(model.name.startswith("tiny") for model in await client.models())


def test_waiting_draws_a_bar_in_a_terminal(make_daemon: Start) -> None:
    import pty

    d = make_daemon(simulator={"tokens_per_s": 60}).start().ready()
    program = (
        "from obatchd.client import Client\n"
        "job = Client().submit([f'what is {i}?' for i in range(60)], label='rivers')\n"
        "print(job.wait().status().succeeded)\n"
    )
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "OBATCH_SPOOL": str(d.spool)}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    data = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while part := os.read(leader, 65536):
            data += part
    os.close(leader)
    assert process.wait(30) == 0
    drawn = data.decode().replace("\r\x1b[K", "\n").splitlines()
    assert drawn[-1] == "60"
    bars = [line for line in drawn if line.startswith("rivers  ")]
    assert len(bars) > 3 and "█" * 24 in bars[-1] and "60 of 60" in bars[-1]
    assert any("/s" in bar for bar in bars) and all(len(bar) < 100 for bar in bars)


def test_a_script_that_no_terminal_shows_is_quiet_and_light(plain: Daemon) -> None:
    program = (
        "import sys\nfrom obatchd.client import Client\njob = Client().submit(['a']).wait()\n"
        "print([one.ok for one in job.results()])\nprint(*sorted(sys.modules))\n"
    )
    environment = {**os.environ, "OBATCH_SPOOL": str(plain.spool)}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    answered, modules = ran.stdout.splitlines()
    assert (answered, ran.stderr) == ("[True]", "")
    assert not {"aiohttp", "pydantic", "pandas", "pyarrow", "asyncio", "obatchd.jobs", "obatchd.settings"} & set(
        modules.split()
    )


def test_the_example_makes_a_table_of_a_table(plain: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (EXAMPLES / "ages.py").read_text()
    assert len(program.splitlines()) <= 15
    monkeypatch.setenv("OBATCH_SPOOL", str(plain.spool))
    monkeypatch.chdir(tmp_path)
    Path("notes.csv").write_text("mrn,note\nM1,A man of 61.\nM2,A girl of 9.\n")
    runpy.run_path(str(EXAMPLES / "ages.py"))
    table = pandas.read_csv("ages.csv")
    assert list(table["mrn"]) == ["M1", "M2"] and list(table["outcome"]) == ["succeeded"] * 2
    assert table["age"].notna().any()


def test_the_cells_of_the_notebook_run(plain: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBATCH_SPOOL", str(plain.spool))
    notebook = json.loads((EXAMPLES / "ages.ipynb").read_text())
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert list(names["table"]["mrn"]) == ["M1", "M2"] and names["job"].state == "done"


def test_what_the_page_shows_works(daemon: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of docs/python.md, from top to bottom, by somebody who has the data that it speaks of."""
    broken = {"kind": "status", "status": 400, "message": "no", "marker": "unreadable", "model": "tiny"}
    d = daemon(simulator={"faults": [broken]})
    monkeypatch.setenv("OBATCH_SPOOL", str(d.spool))
    monkeypatch.chdir(tmp_path)
    Path("notes.csv").write_text("mrn,ward,note\nM1,3,A man of 61.\nM2,5,unreadable\n")
    certificate(tmp_path, "lab-ca")
    rows = list(pandas.read_csv("notes.csv").itertuples())
    names: dict[str, Any] = {
        "__name__": "page", "pandas": pandas, "asyncio": asyncio, "rows": rows,
        "batches": [["a", "b"], ["c"]],
    }  # fmt: skip
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```$", (DOCS / "python.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    for indent, block in blocks:
        exec(textwrap.dedent(indent + block[len(indent) :]), names)
    assert list(names["table"]["mrn"]) == ["M1", "M2"] and list(names["table"]["ward"]) == [3, 5]
    assert len(names["ages"]) == 1
    assert list(names["job"].failures()) == [] and len(list(names["again"].results())) == 1
    assert [len(texts) for texts in asyncio.run(names["main"]())] == [2, 1]


def test_every_name_of_the_package_is_there() -> None:
    package = importlib.import_module("obatchd.client")
    assert {getattr(package, name).__name__ for name in package.__all__} == set(package.__all__) == set(dir(package))
    with pytest.raises(AttributeError):
        package.Nothing  # noqa: B018 - that it is not there
