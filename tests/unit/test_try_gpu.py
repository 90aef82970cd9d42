"""Parts of ``scripts/try-gpu`` that need no machine: values beside those of nvidia-smi, and the folder of results."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# As drivers from 550 on write it, with the blocks that are compared.
XML = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
	<attached_gpus>1</attached_gpus>
	<gpu id="00000000:41:00.0">
		<product_name>NVIDIA H100 80GB HBM3</product_name>
		<persistence_mode>Enabled</persistence_mode>
		<mig_mode><current_mig>Disabled</current_mig><pending_mig>Disabled</pending_mig></mig_mode>
		<serial>1650000000001</serial>
		<uuid>GPU-11111111-2222-3333-4444-555555555555</uuid>
		<vbios_version>96.00.74.00.01</vbios_version>
		<inforom_version><img_version>G520.0200.00.05</img_version></inforom_version>
		<gpu_recovery_action>None</gpu_recovery_action>
		<pci>
			<pci_bus_id>00000000:41:00.0</pci_bus_id>
			<pci_gpu_link_info>
				<pcie_gen><max_link_gen>5</max_link_gen><current_link_gen>5</current_link_gen></pcie_gen>
				<link_widths><max_link_width>16x</max_link_width><current_link_width>8x</current_link_width></link_widths>
			</pci_gpu_link_info>
			<replay_counter>3</replay_counter>
		</pci>
		<fan_speed>N/A</fan_speed>
		<performance_state>P0</performance_state>
		<clocks_event_reasons>
			<clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
			<clocks_event_reason_sw_power_cap>Not Active</clocks_event_reason_sw_power_cap>
			<clocks_event_reason_hw_thermal_slowdown>Active</clocks_event_reason_hw_thermal_slowdown>
		</clocks_event_reasons>
		<clocks_event_reasons_counters>
			<clocks_event_reasons_counters_sw_power_cap>91403239 us</clocks_event_reasons_counters_sw_power_cap>
		</clocks_event_reasons_counters>
		<fb_memory_usage><total>81559 MiB</total><used>1024 MiB</used><free>80000 MiB</free></fb_memory_usage>
		<utilization><gpu_util>40 %</gpu_util><memory_util>3 %</memory_util></utilization>
		<ecc_mode><current_ecc>Enabled</current_ecc><pending_ecc>Enabled</pending_ecc></ecc_mode>
		<ecc_errors>
			<volatile>
				<sram_correctable>0</sram_correctable>
				<sram_uncorrectable_parity>0</sram_uncorrectable_parity>
				<sram_uncorrectable_secded>1</sram_uncorrectable_secded>
				<dram_correctable>7</dram_correctable>
				<dram_uncorrectable>2</dram_uncorrectable>
			</volatile>
			<aggregate>
				<sram_correctable>N/A</sram_correctable>
				<dram_correctable>N/A</dram_correctable>
				<sram_threshold_exceeded>No</sram_threshold_exceeded>
			</aggregate>
		</ecc_errors>
		<retired_pages>
			<multiple_single_bit_retirement><retired_count>N/A</retired_count></multiple_single_bit_retirement>
		</retired_pages>
		<remapped_rows>
			<remapped_row_corr>0</remapped_row_corr>
			<remapped_row_unc>1</remapped_row_unc>
			<remapped_row_pending>No</remapped_row_pending>
			<remapped_row_failure>No</remapped_row_failure>
			<row_remapper_histogram>
				<row_remapper_histogram_none>0 bank(s)</row_remapper_histogram_none>
			</row_remapper_histogram>
		</remapped_rows>
		<temperature>
			<gpu_temp>41 C</gpu_temp>
			<gpu_temp_tlimit>46 C</gpu_temp_tlimit>
			<memory_temp>52 C</memory_temp>
		</temperature>
		<gpu_power_readings>
			<average_power_draw>111.15 W</average_power_draw>
			<instant_power_draw>311.26 W</instant_power_draw>
			<current_power_limit>700.00 W</current_power_limit>
			<default_power_limit>700.00 W</default_power_limit>
		</gpu_power_readings>
		<clocks><sm_clock>1980 MHz</sm_clock><mem_clock>2619 MHz</mem_clock></clocks>
		<max_clocks><sm_clock>1980 MHz</sm_clock></max_clocks>
	</gpu>
</nvidia_smi_log>
"""
OURS: dict[str, Any] = {
    "uuid": "GPU-11111111-2222-3333-4444-555555555555", "name": "NVIDIA H100 80GB HBM3", "mig": False,
    "fan_percent": None, "pci_bus_id": "00000000:41:00.0", "serial": "1650000000001", "vbios": "96.00.74.00.01",
    "persistence": True,
    "inforom": "G520.0200.00.05", "memory_bytes": 81559 * 2**20, "ecc": True, "ecc_pending": True, "pcie_gen_max": 5,
    "power_default_w": 700.0, "clock_max_mhz": 1980, "pcie_width_max": 16, "utilisation_percent": 45,
    "memory_used_bytes": 1030 * 2**20, "temp_c": 42, "power_w": 115.0, "power_limit_w": 700.0, "margin_c": 45,
    "clock_reasons": 0x44, "pcie_width": 8, "pcie_gen": 5, "pcie_replays": 3, "ecc_corrected": 7, "ecc_uncorrected": 3,
    "sram_uncorrected": 1, "remapped_uncorrected": 1, "remap_pending": False, "recovery_action": 0,
    "sw_power_cap_s": 91.4, "performance_state": 0, "banks_without_spares": 0,
}  # fmt: skip


@pytest.fixture
def parts() -> Iterator[Any]:
    """The modules of the script, by name; they are no package."""
    sys.path.insert(0, str(ROOT / "scripts" / "try_gpu"))
    names = ("readings", "results")
    yield lambda name: importlib.import_module(name)
    sys.path.remove(str(ROOT / "scripts" / "try_gpu"))
    for name in names:
        sys.modules.pop(name, None)


def compared(parts: Any, **changes: Any) -> dict[str, Any]:
    readings = parts("readings")
    [card] = readings.cards(XML).values()
    return {row.name: row for row in readings.compare(OURS | changes, card)}


def test_equal_values_agree_whatever_their_units(parts: Any) -> None:
    rows = compared(parts)
    assert [name for name, row in rows.items() if row.agrees is False] == []
    assert {name for name in OURS if name in rows and rows[name].agrees} == OURS.keys()
    # Told by one of them only: no agreement, and no difference.
    assert {name for name, row in rows.items() if row.agrees is None} == {
        "memory_utilisation_percent", "memory_total_bytes", "memory_temp_c", "clock_mhz", "memory_clock_mhz",
        "sram_threshold_exceeded", "remapped_corrected", "remap_failed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ecc_uncorrected", 2), ("serial", "0"), ("pcie_width", 16), ("memory_bytes", 80 * 2**30), ("power_w", 311.0),
        ("clock_reasons", 0x1), ("remap_pending", True), ("recovery_action", 1), ("temp_c", 60), ("mig", True),
    ],
)  # fmt: skip
def test_a_value_that_differs_is_told(parts: Any, name: str, value: Any) -> None:
    assert [row.name for row in compared(parts, **{name: value}).values() if row.agrees is False] == [name]


def test_a_part_that_fails_leaves_the_others_and_the_summary(parts: Any, tmp_path: Path) -> None:
    results = parts("results")
    folder = results.Results(tmp_path / "kept", tmp_path / "state", tmp_path / "also")
    with folder.step("readings", "a GPU"):
        with folder.part("one"):
            raise ValueError("broken")
        with folder.part("other"):
            folder.figure("watts", 12.5, "W")
    with folder.step("job", "a GPU"):
        folder.say("before")
        with folder.part("long"):
            raise results.OutOfTime
    text = (tmp_path / "also" / "summary.txt").read_text()
    assert "readings: 1 FAILED" in text and "FAILED: one: ValueError: broken" in text and "watts: 12.5 W" in text
    assert "long: not done, the time was over" in text and "Not run: prepare, slots" in text
    assert folder.failed_steps() == ["readings", "job"]
    assert json.loads((tmp_path / "also" / "figures.json").read_text())["readings"]["watts"] == 12.5
    with folder.step("job", "a GPU"):  # once more, and well
        folder.say("after")
    assert folder.failed_steps() == ["readings"]


def test_a_step_that_is_cut_off_says_so_and_goes_on_with_its_figures(parts: Any, tmp_path: Path) -> None:
    def folder() -> Any:
        return parts("results").Results(tmp_path / "kept", tmp_path / "state", None)

    cut_off = folder()
    with pytest.raises(KeyboardInterrupt), cut_off.step("slots", "a GPU"):
        cut_off.figure("with_1", 99.0)
        raise KeyboardInterrupt
    assert "slots: CUT OFF" in (tmp_path / "kept" / "summary.txt").read_text()
    assert cut_off.failed_steps() == ["slots"]
    again = folder()
    with again.step("slots", "a GPU"):
        assert (again.earlier("with_1"), again.earlier("with_2")) == (99.0, None)
        again.figure("with_1", 99.0)
    assert "slots: good" in (tmp_path / "kept" / "summary.txt").read_text()
    with again.step("slots", "a GPU"):  # one that was whole begins anew
        assert again.earlier("with_1") is None
