"""The archive for the vendor, with stand-ins of the vendor's tools."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from burnin_support import Card, simulate, uuid

from obatchd.burnin.report import bundle, report
from obatchd.burnin.report.diagnostics import Scrubber, run
from obatchd.documents.burnin.report import BurninReport
from obatchd.errors import NotFoundError

LINE = "NVRM: Xid (PCI:0000:1a:00): 48, pid=2301, name=ollama, DBE (double bit error)"
SMI = "<nvidia_smi_log><process_name>/home/alice/secret project/bin/python</process_name></nvidia_smi_log>"
JOURNAL = f"""2026-11-24T18:00:01 node07 kernel: {LINE}
2026-11-24T18:00:02 node07 kernel: pcieport 0000:00:01.0: AER: Corrected error received
2026-11-24T18:00:03 node07 kernel: Out of memory: Killed process 12 (alice-prompts)
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing but made-up tools."""
    directory = tmp_path / "bin"
    directory.mkdir()

    def tool(name: str, body: str) -> None:
        (directory / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")
        (directory / name).chmod(0o755)

    tool("nvidia-smi", f"cat <<'E'\n{SMI}\nE")
    tool("journalctl", f"cat <<'E'\n{JOURNAL}\nE")
    tool("nvidia-bug-report.sh", "echo 'user alice ran /home/alice/x' | gzip > nvidia-bug-report.log.gz")
    tool("dcgmi", 'echo "{\\"args\\": \\"$*\\"}"; exit 3')
    tool("hangs", "echo begun; sleep 60")
    monkeypatch.setenv("PATH", str(directory))
    return directory


def failed() -> BurninReport:
    def double_bit(at_s: float, fields: dict[str, Any]) -> None:
        if at_s > 600:
            fields.update(ecc_uncorrected=2, remap_pending=True)

    return report.build(simulate([Card(), Card(slow=double_bit, xids=[(600.0, 48, LINE)])], 0.3))


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {
            member.name.partition("/")[2]: file.read()
            for member in archive.getmembers()
            if (file := archive.extractfile(member))
        }


def test_the_archive_has_what_a_return_needs_and_nobody_in_it(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("obatchd.burnin.report.bundle.Scrubber", lambda: Scrubber(["alice"]))
    freed: list[str] = []

    @contextlib.contextmanager
    def free() -> Iterator[None]:
        freed.append("free")
        yield
        freed.append("back")

    document = failed()
    target = tmp_path / "gpu.tar.gz"
    ran = bundle.write(document, bundle.find_gpu(document, "1"), target, diagnose=True, free=free)
    files = contents(target)
    assert freed == ["free", "back"]
    assert files["xids.txt"].decode().rstrip().endswith(LINE)
    assert json.loads(files["counters.json"])["ecc_uncorrected"] == {"start": 0, "end": 2, "change": 2}
    assert "remap_pending" in json.loads(files["memory-repair.json"])
    assert "pcie_replays" in json.loads(files["pcie.json"])
    assert json.loads(files["gpu.json"])["verdict"] == "FAIL"
    assert json.loads(files["dcgmi-diag.json"])["args"] == "diag -r 3 -j -i 1"
    assert b"AER: Corrected" in files["kernel.log"] and b"Out of memory" not in files["kernel.log"]
    assert files["nvidia-smi-q.xml"].decode().strip() == SMI.replace("/home/alice/secret project/bin/", "")
    assert gzip.decompress(files["nvidia-bug-report.log.gz"]) == b"user user ran /home/user/x\n"
    assert not [name for name, data in files.items() if b"alice" in data]
    readme = files["README.txt"].decode()
    assert "1651223000001" in readme and "obatchctl burnin start --gpus 1" in readme
    assert "first 10 min" in readme and "% utilisation" in readme
    assert [tool.outcome.partition(" after")[0] for tool in ran] == ["exit code 0"] * 3 + ["exit code 3"]
    sums = dict(reversed(line.split("  ")) for line in files.pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_what_is_missing_or_needs_root_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    document = failed()
    outcomes = bundle.write(
        document, document.gpus[0], tmp_path / "gpu.tar.gz", diagnose=True, free=contextlib.nullcontext
    )  # fmt: skip
    assert all("not installed" in tool.outcome for tool in outcomes)
    (tmp_path / "nvidia-bug-report.sh").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-bug-report.sh").chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    ran = run("bug report", ["nvidia-bug-report.sh", "--safe-mode"], 5, as_root=True)
    assert "sudo nvidia-bug-report.sh --safe-mode" in ran.outcome


def test_a_tool_that_hangs_is_not_waited_for(tools: Path) -> None:
    ran = run("hangs", ["hangs"], 0.5)
    assert "killed" in ran.outcome
    assert ran.output == b"begun\n"


def test_a_gpu_is_found_by_index_uuid_or_serial() -> None:
    document = failed()
    for name in ("1", uuid(1), "1651223000001"):
        assert bundle.find_gpu(document, name).index == 1
    with pytest.raises(NotFoundError, match="GPU 7 is not in the report"):
        bundle.find_gpu(document, "7")


def test_people_are_taken_out_of_text() -> None:
    scrub = Scrubber(["bob", "root-like"])
    assert scrub.text("bob ran /home/bob/x as bob-2; bobsled") == "user ran /home/user/x as bob-2; bobsled"
    assert scrub.data(b"\x1f\x8bcut short") == b""
