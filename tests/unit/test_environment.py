from __future__ import annotations

import pwd
from pathlib import Path

import pytest
from settings_support import nobody

from obatchd.errors import ConfigError
from obatchd.gpus.model import Gpu
from obatchd.servers.environment import Launch, build, models_dir
from obatchd.servers.program import Ollama
from obatchd.settings.settings import Settings
from obatchd.settings.tables.servers import ServerSettings
from obatchd.simulator.program import SimulatedOllama

GPU = Gpu("GPU-aa", "Test", 0, "00000000:01:00.0", 2**30, "1.0")


def launch(**fields: object) -> Launch:
    defaults: dict[str, object] = {
        "server": "gpu0",
        "instance": "spool-uuid",
        "host": "127.0.0.1",
        "port": 11500,
        "slots": 8,
        "context_length": 8192,
        "home": Path("/spool/work/home/gpu0"),
        "models_dir": Path("/models"),
    }
    return Launch(**{**defaults, **fields})  # type: ignore[arg-type]


def test_nothing_stray_gets_in() -> None:
    base = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "OLLAMA_DEBUG": "2",
        "OLLAMA_HOST": "0.0.0.0",
        "CUDA_VISIBLE_DEVICES": "3",
        "LLAMA_ARG_CTX_SIZE": "1",
        "SECRET": "x",
        "OBATCHD_SIMULATOR": "{}",
    }
    environment = build(base, ServerSettings(), launch(gpus=[GPU]))
    assert environment.keys().isdisjoint({"OLLAMA_DEBUG", "LLAMA_ARG_CTX_SIZE", "SECRET", "OBATCHD_SIMULATOR"})
    assert environment["PATH"] == "/bin" and environment["LC_ALL"] == "C"
    expected = {
        "OLLAMA_HOST": "127.0.0.1:11500",
        "CUDA_VISIBLE_DEVICES": "GPU-aa",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "OLLAMA_VULKAN": "0",
        "OLLAMA_MODELS": "/models",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NUM_PARALLEL": "8",
        "OLLAMA_CONTEXT_LENGTH": "8192",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
        "HOME": "/spool/work/home/gpu0",
        "OBATCH_INSTANCE": "spool-uuid",
        "OBATCH_SERVER": "gpu0",
    }
    assert expected.items() <= environment.items()


def test_a_group_sees_its_gpus_and_a_cpu_server_none() -> None:
    other = Gpu("GPU-bb", "Test", 1, "00000000:02:00.0", 2**30, "1.0")
    assert build({}, ServerSettings(), launch(gpus=[GPU, other]))["CUDA_VISIBLE_DEVICES"] == "GPU-aa,GPU-bb"
    assert build({}, ServerSettings(), launch())["CUDA_VISIBLE_DEVICES"] == "-1"


def test_no_server_computes_on_a_gpu_that_nobody_gave_it() -> None:
    """Of AMD or Intel: those that CUDA_VISIBLE_DEVICES says nothing about."""
    base = {"ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0", "GGML_VK_VISIBLE_DEVICES": "0"}
    hidden = {name: "-1" for name in base} | {"OLLAMA_VULKAN": "0"}
    for gpus in ([], [GPU]):
        assert hidden.items() <= build(base, ServerSettings(), launch(gpus=gpus)).items()
    assert build({}, ServerSettings(), launch())["OLLAMA_LLM_LIBRARY"] == "cpu"
    assert "OLLAMA_LLM_LIBRARY" not in build({}, ServerSettings(), launch(gpus=[GPU]))
    chosen = ServerSettings(environment={"ROCR_VISIBLE_DEVICES": "GPU-1234"})
    assert build(base, chosen, launch())["ROCR_VISIBLE_DEVICES"] == "GPU-1234"


def test_proxies_pass_for_pulls_but_never_for_loopback() -> None:
    settings = ServerSettings(environment={"HTTPS_PROXY": "http://proxy:1"})
    base = {"HTTPS_PROXY": "http://other:2", "no_proxy": "example.org", "SSL_CERT_FILE": "/ca.pem"}
    environment = build(base, settings, launch(host="192.0.2.1"))
    assert environment["HTTPS_PROXY"] == "http://proxy:1" and environment["SSL_CERT_FILE"] == "/ca.pem"
    assert environment["NO_PROXY"] == "example.org,127.0.0.1,localhost,192.0.2.1"


def test_the_configured_environment_cannot_undo_what_obatchd_needs() -> None:
    assert build({}, ServerSettings(environment={"OLLAMA_LLM_LIBRARY": "cuda_v13"}), launch())["OLLAMA_LLM_LIBRARY"]
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        build({}, ServerSettings(environment={"CUDA_VISIBLE_DEVICES": "1"}), launch())


def test_the_simulator_gets_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBATCHD_SIMULATOR", "{}")
    simulated = SimulatedOllama(Path("/sim"))
    environment = build({}, ServerSettings(), launch(own=simulated.environment()))
    assert environment["OBATCHD_SIMULATOR"] == "{}" and environment["OBATCHD_SIMULATOR_GPU_DIR"] == "/sim"
    assert simulated.command()[1:] == ["-P", "-m", "obatchd.simulator.ollama", "serve"]
    assert Ollama("/bin/sh").command() == ["/bin/sh", "serve"]


def test_ipv6_addresses_are_bracketed() -> None:
    assert build({}, ServerSettings(), launch(host="::1"))["OLLAMA_HOST"] == "[::1]:11500"


def test_model_store(monkeypatch: pytest.MonkeyPatch) -> None:
    ollama, simulated = Ollama("ollama"), SimulatedOllama(Path("/sim"))
    monkeypatch.setenv("OLLAMA_MODELS", "/o")
    work = Path("/spool/work")
    assert models_dir(ServerSettings(models_dir="/m"), ollama, work) == Path("/m")
    assert models_dir(ServerSettings(), ollama, work) == Path("/o")
    assert models_dir(ServerSettings(), simulated, work) == Path("/sim/models")
    monkeypatch.delenv("OLLAMA_MODELS")
    assert models_dir(ServerSettings(), ollama, work) == Path("~/.ollama/models").expanduser()


@pytest.mark.parametrize("home", [None, ""])
def test_a_user_without_a_home_has_models_in_the_spool(monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    nobody(monkeypatch, home)
    assert models_dir(ServerSettings(), Ollama("ollama"), Path("/spool/work")) == Path("/spool/work/models")
    with pytest.raises(ConfigError, match=r"~/models: the home directory is not known.* Set HOME"):
        models_dir(ServerSettings(models_dir="~/models"), Ollama("ollama"), Path("/spool/work"))
    with pytest.raises(ConfigError, match=r"~/batch: the home directory is not known"):
        _ = Settings(spool="~/batch").spool_path
    assert Settings(spool="/batch").spool_path == Path("/batch")


def test_the_home_of_somebody_else_has_nothing_to_do_with_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as refused:
        _ = Settings(spool="~no-such-user/batch").spool_path
    assert "passwd has no user no-such-user" in refused.value.message and "HOME" not in refused.value.message
    monkeypatch.setenv("HOME", "")
    assert Settings(spool="~root/batch").spool_path == Path(pwd.getpwnam("root").pw_dir, "batch")
