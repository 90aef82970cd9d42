"""The parts of the stand-in that need no server: configuration, faults, answers, models, GPUs."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
from pathlib import Path

import msgspec
import pytest

from obatchd.errors import ConfigError
from obatchd.simulator import answers
from obatchd.simulator.cards import load as cards_load
from obatchd.simulator.cards.load import Averages, Load, LoadReporter
from obatchd.simulator.config import Config, Distribution, Fault, FaultBox, ModelSpec, load
from obatchd.simulator.gpus import MACHINE, SimulatedGpus, simulated_gpus, simulated_uuid
from obatchd.simulator.ollama import host_and_port, visible_gpus
from obatchd.simulator.store import ModelStore
from obatchd.simulator.wire import go_duration_s


def test_inline_text_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "simulator.toml"
    path.write_text('load_s = 2.0\ntokens_per_s = 30\n[[faults]]\nkind = "crash"\nat = 3\n')
    config = load({"OBATCHD_SIMULATOR_CONFIG": str(path), "OBATCHD_SIMULATOR": '{"load_s": 1}'})
    assert (config.load_s, config.tokens_per_s, config.faults) == (1.0, 30.0, [Fault("crash", at=3)])
    assert load({"OBATCHD_SIMULATOR": "{}"}) == Config()


def test_without_a_configuration_it_takes_the_time_of_a_gpu() -> None:
    assert load({}).tokens_per_s == 40
    assert load({}).load_s > 0


@pytest.mark.parametrize("text", ['{"laod_s": 1}', "{", '{"faults": [{"kind": "nonsense"}]}'])
def test_a_wrong_configuration_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="OBATCHD_SIMULATOR"):
        load({"OBATCHD_SIMULATOR": text})


def test_faults_strike_when_all_their_conditions_hold() -> None:
    def strikes(fault: Fault, prompts: list[str]) -> list[int]:
        box = FaultBox([fault])
        return [
            place for place, prompt in enumerate(prompts, 1) if box.strike(frozenset({fault.kind}), "m:latest", prompt)
        ]

    six = ["a", "b", "a", "b", "a", "b"]
    assert strikes(Fault("cut"), six) == [1, 2, 3, 4, 5, 6]
    assert strikes(Fault("cut", at=2), six) == [2]
    assert strikes(Fault("cut", every=2), six) == [2, 4, 6]
    assert strikes(Fault("cut", marker="b", count=2), six) == [2, 4]
    assert strikes(Fault("cut", marker="a", every=2), six) == [3]
    assert strikes(Fault("cut", model="m"), six) == [1, 2, 3, 4, 5, 6]
    assert strikes(Fault("cut", model="other"), six) == []
    assert strikes(Fault("cut", probability=0.0), six) == []
    assert 300 < len(strikes(Fault("cut", probability=0.5), ["a"] * 1000)) < 700


def test_distributions_are_the_same_for_the_same_prompt() -> None:
    lognormal = Distribution("lognormal", mean=2.0, sigma=0.5)
    assert lognormal.draw("a") == lognormal.draw("a") != lognormal.draw("b")
    assert statistics.mean(lognormal.draw(str(place)) for place in range(4000)) == pytest.approx(2.0, rel=0.05)
    assert 3 <= Distribution("uniform", low=3, high=4).draw("a") <= 4
    assert Distribution(tokens=20).draw("a") == 20


def test_answers_begin_with_the_digest_and_depend_on_prompt_and_seed() -> None:
    key = answers.digest("hello")
    assert key == "2cf24dba5fb0a30e"
    pieces = answers.tokens(key, -1, Distribution(tokens=20), None)
    assert len(pieces) == 20
    assert pieces[0] == f"digest:{key}"
    assert pieces == answers.tokens(key, -1, Distribution(tokens=20), None)
    assert pieces != answers.tokens(key, 7, Distribution(tokens=20), None)


def test_answers_follow_the_format() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "count": {"type": "integer", "minimum": 3},
            "tags": {"type": "array", "items": {"enum": ["x", "y"]}},
            "inner": {"$ref": "#/$defs/inner"},
            "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        },
        "$defs": {"inner": {"type": "object", "properties": {"yes": {"type": "boolean"}}}},
    }
    key = answers.digest("hello")
    made = msgspec.json.decode("".join(answers.tokens(key, -1, Distribution(tokens=3), schema)))
    assert made.pop("name").startswith(f"digest:{key}")
    assert made == {"count": 3, "tags": ["x"], "inner": {"yes": True}, "maybe": None}
    plain = msgspec.json.decode("".join(answers.tokens(key, -1, Distribution(tokens=3), "json")))
    assert plain["answer"].startswith(f"digest:{key}")
    assert answers.valid_schema(schema)
    assert not answers.valid_schema({"type": "object", "properties": {"a": {"type": "silly"}}})


def test_stores_of_two_servers_see_each_other(tmp_path: Path) -> None:
    first, second = (ModelStore(tmp_path / "models", [ModelSpec("tiny")]) for _ in range(2))
    assert list(first.all()) == ["tiny:latest"]
    first.put(ModelSpec("other:7b"))
    assert second.find("other:7b") is not None
    assert second.find("tiny") == second.find("tiny:latest") == first.find("tiny")
    second.remove("tiny")
    assert list(first.all()) == ["other:7b"]


def test_addresses_and_gpus_are_read_as_ollama_reads_them() -> None:
    assert host_and_port("") == ("127.0.0.1", 11434)
    assert host_and_port("127.0.0.1:11500") == ("127.0.0.1", 11500)
    assert host_and_port("http://0.0.0.0") == ("0.0.0.0", 80)
    assert host_and_port(":8080") == ("127.0.0.1", 8080)
    assert host_and_port("[::1]:9") == ("::1", 9)
    assert host_and_port("host:99999") == ("host", 11434)
    assert visible_gpus("GPU-x,1", Config()) == ["GPU-x", simulated_uuid(1)]
    assert [visible_gpus(value, Config()) for value in (None, "", "-1")] == [[], [], []]
    assert visible_gpus("GPU-x", Config(gpu_found=False)) == []
    assert (go_duration_s("1h30m"), go_duration_s("-1s"), go_duration_s("250ms")) == (5400.0, -1.0, 0.25)


def test_two_machines_have_no_gpu_in_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimulatedGpus(tmp_path, 2)
    monkeypatch.setenv(MACHINE, "7")
    there = SimulatedGpus(tmp_path, 2)
    assert not {gpu.uuid for gpu in here.gpus()} & {gpu.uuid for gpu in there.gpus()}
    assert [card.serial for card in there.identities()] == ["SIM0007000000", "SIM0007000001"]


def test_gpus_without_a_server_are_idle(tmp_path: Path) -> None:
    source = SimulatedGpus(tmp_path, 2)
    assert source.gpus() == simulated_gpus(2)
    assert len({gpu.uuid for gpu in simulated_gpus(8)}) == 8
    reading = source.readings()[1]
    assert (reading.utilisation_percent, reading.memory_used_bytes, reading.temp_c) == (0, 0, 35)
    assert reading.power_w == 60.0


async def test_gpu_readings_follow_the_load(tmp_path: Path) -> None:
    reporter = LoadReporter(tmp_path, [simulated_uuid(0)], slots=4)
    reporter.busy(4)
    reporter.memory(5 * 1024**3, os.getpid())
    source = SimulatedGpus(tmp_path, 1)

    async def until(least_percent: int) -> None:
        while (source.readings()[0].utilisation_percent or 0) < least_percent:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(until(95), 10)
    reading = source.readings()[0]
    assert reading.memory_used_bytes == 5 * 1024**3
    assert [process.pid for process in reading.processes] == [os.getpid()]
    assert reading.power_w is not None and reading.power_w > 150


def test_a_dead_server_leaves_its_gpu_idle_and_its_runner_holding_memory(tmp_path: Path) -> None:
    finished = subprocess.Popen(["true"])
    finished.wait()
    path = tmp_path / f"{simulated_uuid(0)}.json"
    hot = Averages(utilisation=1.0, power=1.0, temp=1.0)
    path.write_bytes(msgspec.json.encode(Load(finished.pid, 4, 4, 1024, hot, 0.0, runner_pid=os.getpid())))
    reading = SimulatedGpus(tmp_path, 1).readings()[0]
    assert (reading.utilisation_percent, reading.memory_used_bytes) == (0, 1024)


def test_a_runner_that_dies_during_a_reading_never_holds_memory_without_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([True])  # it is gone at the second look
    monkeypatch.setattr(cards_load, "is_alive", lambda pid: pid == os.getpid() or next(looks, False))
    note = Load(os.getpid(), 4, 0, 1024, Averages(), 0.0, runner_pid=2**22 + 1)
    (tmp_path / f"{simulated_uuid(0)}.json").write_bytes(msgspec.json.encode(note))
    reading = SimulatedGpus(tmp_path, 1).readings()[0]
    assert all(process.pid is not None for process in reading.processes)
