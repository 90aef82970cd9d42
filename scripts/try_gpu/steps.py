"""All steps but the burn-in. Each does what it can, and says what it could not do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from families import Bench
from harness import Daemon, free_port
from machine import CACHE, MODEL, ROOT, SIMULATOR, Machine, control, drop, run, summary_of
from readings import cards, compare
from results import Results

BUILD_S = 440.0  # a build that takes longer goes on in the background
LAYERS, WIDTH, FEED_FORWARD, CONTEXT = 24, 2048, 5632, 131072  # of the model: 1.2 billion parameters
LADDER = (1, 2, 4, 8, 16, 32, 64)
WARM_S, MEASURED_S = 4.0, 14.0
QUESTION = "Tell what you know about number {} and the town on the river, in as many words as you like."
# In a process of its own: a binding loads one library for life.
READ = """
import msgspec, sys, time
from obatchd.gpus.nvml.driver import Nvml
source = Nvml()
gpus = source.gpus()
source.readings()
report = {"gpus": gpus, "problems": source.problems, "identities": source.identities(), "readings": source.readings(),
          "slow": source.slow_readings(), "host_trouble": source.host_trouble()}
sys.stdout.buffer.write(msgspec.json.encode(report))
"""


def prepare(machine: Machine, results: Results) -> None:
    """Ollama for this GPU, and a model that is large enough to keep it busy."""
    for fact in machine.facts():
        results.say(fact)
    with results.part("the libraries of Python for the loads"):
        for name in ("numpy", "cupy", "torch"):
            results.say(f"{name}: {_version(name)}")
    if not machine.real:
        results.say("nothing is built: the servers are stand-ins")
        return
    began_s = time.monotonic()
    _build_in_background(machine)
    with results.part("the model"):
        _make_gguf(results)
    with results.part("Ollama with its CUDA engine"):
        while _builds() and time.monotonic() - began_s < BUILD_S:
            time.sleep(1)
        if _builds():
            results.fail("Ollama is still being built, in the background: run prepare again")
            return
        if not (CACHE / "ollama" / ".built").exists():
            raise RuntimeError((CACHE / "build.log").read_text()[-1500:])
        results.figure("build_s", round(time.monotonic() - began_s, 1), "s")
        _make_model(machine, results)


def _version(name: str) -> str:
    told = subprocess.run(
        [sys.executable, "-c", f"import {name}; print({name}.__version__)"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "none"


def _build_in_background(machine: Machine) -> None:
    """It goes on when this process ends; one that an earlier step began is not begun again."""
    if _builds():
        return
    with (CACHE / "build.log").open("wb") as log:
        process = subprocess.Popen(
            [ROOT / "scripts" / "ollama-for-gpu", "build", machine.pack / "ollama", CACHE / "ollama"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    (CACHE / "build.pid").write_text(str(process.pid))


def _builds() -> bool:
    """Whether it is being built; a process that has ended has no command line."""
    with contextlib.suppress(OSError, ValueError):
        number = int((CACHE / "build.pid").read_text())
        return b"ollama-for-gpu" in Path(f"/proc/{number}/cmdline").read_bytes()
    return False


def _make_gguf(results: Results) -> None:
    path = CACHE / "model" / "tiny.gguf"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    heads, unfinished = WIDTH // 64, path.with_suffix(".part")
    size = ["--layers", LAYERS, "--embd", WIDTH, "--heads", heads, "--ff", FEED_FORWARD, "--ctx", CONTEXT]
    command = [sys.executable, ROOT / "scripts" / "make_tiny_gguf.py", unfinished, *size, "--eos-bias", "-20"]
    run([str(part) for part in command], 400)
    unfinished.rename(path)
    results.say(f"a model of {path.stat().st_size / 2**30:.1f} GiB was made in {time.monotonic() - began_s:.0f} s")


def _make_model(machine: Machine, results: Results) -> None:
    if (machine.models / "manifests/registry.ollama.ai/library" / MODEL).exists():
        return
    shutil.copyfile(ROOT / "scripts" / "Modelfile", CACHE / "model" / "Modelfile")
    address = f"127.0.0.1:{free_port()}"
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA_", "CUDA_"))}
    home = {"OLLAMA_HOST": address, "OLLAMA_MODELS": str(machine.models), "HOME": str(CACHE / "work")}
    environment = own | home | {"OLLAMA_NO_CLOUD": "1"}
    with (CACHE / "serve.log").open("wb") as log:
        server = subprocess.Popen([machine.ollama, "serve"], env=environment, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + 60
        while subprocess.run([machine.ollama, "list"], env=environment, capture_output=True, check=False).returncode:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"ollama serve did not start: {(CACHE / 'serve.log').read_text()[-800:]}")
            time.sleep(0.3)
        run([str(machine.ollama), "create", MODEL, "-f", str(CACHE / "model" / "Modelfile")], 300, env=environment)
    finally:
        server.terminate()
        server.wait(20)
    found = [line for line in (CACHE / "serve.log").read_text().splitlines() if "inference compute" in line]
    results.check(any("CUDA" in line for line in found), f"Ollama found: {' '.join(found)[-300:] or 'no GPU'}")


def readings(machine: Machine, results: Results) -> None:
    """Every value that the probe reads beside nvidia-smi's."""
    with machine.library(machine.spool / "readings") as library:
        if not machine.real and library is None:
            results.fail("no C compiler: the stand-in library cannot be built")
            return
        ours = json.loads(run([sys.executable, "-c", READ], 120))
        xml = library.nvidia_smi() if library else run(["nvidia-smi", "-q", "-x"], 120)
    (results.kept / "nvidia-smi.xml").write_text(xml)
    if library:
        results.say(
            "nvidia-smi is a stand-in, too: this shows that values go through the binding, not what a driver says"
        )
    found = cards(xml)
    document: dict[str, Any] = {"ours": ours, "compared": {}}
    for identity, slow in zip(ours["identities"], ours["slow"], strict=True):
        uuid = identity["uuid"]
        reading = next(reading for reading in ours["readings"] if reading["uuid"] == uuid)
        values = {**identity, **reading, **slow}
        rows = compare(values, found[uuid])
        document["compared"][uuid] = [row._asdict() for row in rows]
        same = [row.name for row in rows if row.agrees]
        results.say(
            f"GPU {identity['index']}, {identity['name']}: {len(same)} of {len(rows)} values are as nvidia-smi's"
        )
        for row in rows:
            if row.agrees is False:
                results.fail(f"{row.name}: {row.ours} here, {row.theirs} in nvidia-smi")
            elif row.agrees is None:
                results.say(f"only one tells {row.name}: {row.ours} here, {row.theirs} in nvidia-smi")
        beside = sorted(name for name, value in values.items() if value not in (None, "", {}, []))
        results.say("without a counterpart: " + ", ".join(sorted(set(beside) - {row.name for row in rows})))
        untold = sorted(name for name, value in values.items() if value is None)
        results.say(f"not told by this card: {', '.join(untold) or 'none'}")
        for kind, errors in (("reading", reading["errors"]), ("slow reading", slow["errors"])):
            results.check(not errors, f"errors of the {kind}: {errors or 'none'}")
    results.json("readings.json", document)


def job(machine: Machine, results: Results) -> None:
    """A job through one managed server."""
    with machine.daemon("job", servers={"slots": 16}) as daemon:
        server = daemon.status()["servers"][0]
        results.say(f"server {server['id']} is {server['state']}")
        requests = [{"id": f"r{number}", "prompt": QUESTION.format(number)} for number in range(400)]
        drop(daemon, "first", requests)
        summary = summary_of(daemon, "first", 240)
        results.check(summary["succeeded"] == len(requests), f"{summary['succeeded']} of {len(requests)} were answered")
        results.say(f"Ollama {summary['servers'][server['id']]['ollama_version']}")
        results.figure("tokens_per_s", float(summary["tokens_per_s"]), "tokens/s, loading included")
        results.figure("speedup", float(summary["speedup"]), "times one request after the other")
        gpu = daemon.client.get("gpus/0")
        findings = [finding["signal"] for finding in gpu["findings"]]
        results.say(f"health: {gpu['health']}; findings: {', '.join(findings) or 'none'}")
        held = gpu["memory_used_bytes"] or 0
        results.check(held > 2**30, f"{held / 2**30:.1f} GiB of the GPU's memory are used")
        results.check(
            _held_bytes(daemon) > 2**30, f"its process holds {_held_bytes(daemon) / 2**30:.1f} GiB by the driver"
        )
        where = [line for line in _server_log(daemon).splitlines() if "offloaded" in line or "CUDA0" in line][-3:]
        results.check(
            not machine.real or bool(where), "the server's log: " + (" | ".join(where)[-400:] or "no layers on the GPU")
        )
        job_json = control(daemon, "job", "first", "--json").stdout
        with contextlib.suppress(ValueError, KeyError):
            energy_j = json.loads(job_json).get("energy_j")
            results.say("energy of the job: " + ("not told" if energy_j is None else f"{energy_j} J"))


def _held_bytes(daemon: Daemon) -> int:
    """Memory of the GPU that processes hold, by the driver."""
    reading = daemon.client.get("gpus/0")["reading"] or {}
    return sum(process["memory_bytes"] or 0 for process in reading.get("processes", []))


def _server_log(daemon: Daemon) -> str:
    return "".join(path.read_text(errors="replace") for path in (daemon.spool / "work" / "logs").glob("*.log"))


def slots(machine: Machine, results: Results) -> None:
    """Answered tokens per second with 1 to 64 slots; the rest of one job goes on with each number."""
    speeds: dict[int, float] = {}
    for number in LADDER:
        name = f"tokens_per_s_with_{number}_slots"
        if (known := results.earlier(name)) is not None:
            speeds[number] = float(known)
            results.figure(name, speeds[number], "tokens/s, measured before the step was cut off")
            continue
        with (
            results.part(f"{number} slots"),
            machine.daemon("slots", servers={"slots": number}, context_length=2048) as daemon,
        ):
            if not list(daemon.outbox.iterdir()):
                drop(daemon, "long", [{"id": f"r{n}", "prompt": QUESTION.format(n)} for n in range(60_000)])
            speeds[number] = _tokens_per_s(daemon)
            results.figure(name, round(speeds[number], 1), "tokens/s")
    if speeds:
        best = max(speeds, key=lambda number: speeds[number])
        results.say(f"best: {best} slots, {speeds[best] / speeds[min(speeds)]:.1f} times {min(speeds)}")


def _tokens_per_s(daemon: Daemon) -> float:
    def done() -> int:
        return sum(int(server["requests_done"]) for server in daemon.status()["servers"])

    def next_answer(limit_s: float) -> tuple[int, float]:
        before, deadline_s = done(), time.monotonic() + limit_s
        while (now := done()) == before and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return now, time.monotonic()

    next_answer(60)
    time.sleep(WARM_S)
    first, began_s = next_answer(20)
    time.sleep(MEASURED_S)
    last, ended_s = next_answer(20)
    return 64 * (last - first) / (ended_s - began_s)


def families(machine: Machine, results: Results) -> None:
    """Prompts that share a beginning of 2,000 tokens, with families on and off, in turns."""
    with machine.daemon("families", dispatch={"families": "auto"}) as probe:  # its settings, and that it starts
        config = (probe.inbox.parent.parent / "obatchd.toml").read_text()
    import toml

    settings = toml.loads(config) | {"max_response_tokens": 8, "log_level": "warning"}
    settings["servers"] |= {"slots": 4, "environment": {"OLLAMA_DEBUG": "1"}}
    directory = machine.spool / "families-bench"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    walls: dict[tuple[str, str], list[float]] = {}
    with machine.library(directory):
        bench = Bench(directory, settings, "0.24", 8)
        if not machine.real:
            bench.daemon = Daemon(directory, settings, SIMULATOR)
        with bench.daemon:
            bench.start()
            words = bench.words_for(2000)
            for turn in range(3):
                for mix in ("ordered", "shuffled"):
                    for way in ("auto", "off") if turn % 2 else ("off", "auto"):
                        found = bench.through(mix, words, way)
                        walls.setdefault((mix, way), []).append(found.wall_s)
                        told = f"{found.wall_s:.2f} s, {found.cold} of 40 prompts computed as a whole"
                        results.say(f"{mix}, families {way}: {told}")
    for mix in ("ordered", "shuffled"):
        on, off = (statistics.median(walls[mix, way]) for way in ("auto", "off"))
        results.figure(f"{mix}_on_to_off", round(on / off, 3), "of the time without families")


def care(machine: Machine, results: Results) -> None:
    """Quarantine and lend: the memory is freed, the work waits, and goes on."""
    with machine.daemon("care") as daemon:
        requests = [{"id": f"r{number}", "prompt": QUESTION.format(number)} for number in range(700)]
        drop(daemon, "meanwhile", requests)
        _until(lambda: daemon.status()["servers"][0]["requests_done"] > 20, 60, "the first answers")
        for begin, end, state in (
            (("gpus", "quarantine", "0", "--reason", "a trial"), ("gpus", "release", "0"), "quarantined"),
            (("gpus", "lend", "0", "--for", "10m"), ("gpus", "lend", "0", "--back"), "lent"),
        ):
            with results.part(state):
                _away_and_back(daemon, results, begin, end, state)
        summary = summary_of(daemon, "meanwhile", 240)
        results.check(
            summary["succeeded"] == len(requests), f"{summary['succeeded']} of {len(requests)} were answered in the end"
        )


def _away_and_back(daemon: Daemon, results: Results, begin: Any, end: Any, state: str) -> None:
    def server() -> dict[str, Any]:
        found: dict[str, Any] = daemon.status()["servers"][0]
        return found

    _until(lambda: _held_bytes(daemon) > 2**30, 30, "its process holds memory of the GPU")
    before_bytes, began_s = _held_bytes(daemon), time.monotonic()
    answer = control(daemon, *begin)
    results.check(
        answer.returncode == 0, f"obatchctl {' '.join(begin)}: {(answer.stdout + answer.stderr).strip()[:300]}"
    )
    _until(lambda: _held_bytes(daemon) == 0, 60, f"no process holds memory, the server is {server()['state']}")
    away = server()
    freed_s = time.monotonic() - began_s
    results.say(
        f"{state}: after {freed_s:.1f} s no process holds memory of the GPU ({before_bytes / 2**30:.1f} GiB before)"
    )
    results.check(away["state"] not in ("ready", "busy"), f"the server is {away['state']}")
    answered = server()["requests_done"]
    time.sleep(2)
    results.check(server()["requests_done"] == answered, "nothing is answered meanwhile")
    began_s = time.monotonic()
    answer = control(daemon, *end)
    results.check(answer.returncode == 0, f"obatchctl {' '.join(end)}: {(answer.stdout + answer.stderr).strip()[:300]}")
    _until(lambda: server()["requests_done"] != answered and server()["state"] == "ready", 90, "answers again")
    results.say(f"{state}: {time.monotonic() - began_s:.1f} s after its end it answers again")


def _until(look: Any, limit_s: float, what: str) -> None:
    deadline_s = time.monotonic() + limit_s
    while not look():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(0.2)
