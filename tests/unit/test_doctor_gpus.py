"""What ``obatchctl doctor`` says of GPUs where there is no usable NVIDIA driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from obatchd.cli.doctor import host_checks
from obatchd.settings.settings import Settings

DISPLAY, COMPUTE, AUDIO, ACCELERATOR = "0x030000", "0x038000", "0x040300", "0x120000"
AMD, INTEL, NVIDIA = "0x1002", "0x8086", "0x10de"


@pytest.fixture
def pci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host_checks, "_PCI", tmp_path)
    monkeypatch.setattr(host_checks, "_run", lambda command: '{"error": "Driver Not Loaded"}')
    return tmp_path


def put(pci: Path, *devices: tuple[str, str]) -> None:
    for number, (vendor, kind) in enumerate(devices):
        place = pci / f"0000:{number:02x}:00.0"
        place.mkdir()
        (place / "vendor").write_text(f"{vendor}\n")
        (place / "class").write_text(f"{kind}\n")


@pytest.mark.parametrize("kind", [DISPLAY, COMPUTE, ACCELERATOR])
def test_an_amd_gpu_is_named_with_the_way_to_use_it(pci: Path, kind: str) -> None:
    put(pci, (AMD, kind), (AMD, AUDIO), (INTEL, DISPLAY))
    found = host_checks.driver(Settings())
    assert found.level == "warn" and found.text.startswith("1 AMD GPU, but no usable NVIDIA driver")
    assert '[ollama_instances] "127.0.0.1:11501" = -1' in found.text
    assert found.next_command == "ROCR_VISIBLE_DEVICES=0 OLLAMA_HOST=127.0.0.1:11501 ollama serve"


def test_several_are_counted(pci: Path) -> None:
    put(pci, (AMD, ACCELERATOR), (AMD, ACCELERATOR))
    assert host_checks.driver(Settings()).text.startswith("2 AMD GPUs")


def test_other_devices_are_no_amd_gpus(pci: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(pci, (AMD, AUDIO), (INTEL, DISPLAY), (NVIDIA, DISPLAY))
    (pci / "0000:77:00.0").mkdir()  # taken out while it was looked at
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    found = host_checks.driver(Settings())
    assert found.next_command == "nvidia-smi" and "AMD" not in found.text
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert host_checks.driver(Settings()).next_command == "lspci | grep -i nvidia"


def test_who_has_named_servers_hears_nothing_of_it(pci: Path) -> None:
    put(pci, (AMD, DISPLAY))
    settings = Settings.model_validate({"ollama_instances": {"127.0.0.1:11501": 0}})
    assert host_checks.driver(settings).level == "ok"
