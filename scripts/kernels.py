"""Compiles obatchd/burnin/stress/kernels.cu to kernels.ptx, with NVIDIA's compiler from the package index.

Run it after every change of kernels.cu; a test sees when that was forgotten. It needs no GPU. The code is for every
card since Maxwell: the driver makes that of the card of it. With --check it also lets ptxas make that of some cards.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent / "obatchd" / "burnin" / "stress"
SOURCE, PTX = HERE / "kernels.cu", HERE / "kernels.ptx"
COMPILER = "nvidia-cuda-nvrtc-cu12==12.9.86"  # the last that knows cards before Turing
ASSEMBLERS = {
    "nvidia-cuda-nvcc-cu12==12.9.86": ("sm_50", "sm_61", "sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90"),
    "nvidia-cuda-nvcc==13.5.37": ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120"),
}
# The compiler writes the newest version of PTX, which drivers refuse that are older than itself (CUDA's "PTX ISA",
# release notes). The instructions in our code were all there in 6.0, of CUDA 9.
VERSION = "6.0"


def unpacked(requirement: str, directory: Path) -> Path:
    target = directory / requirement.split("==")[0]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(target), requirement]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    return target


def compiled(library: Path) -> str:
    nvrtc = ctypes.CDLL(str(library))
    program = ctypes.c_void_p()
    source = SOURCE.read_bytes()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None):
        sys.exit("the compiler could not be started")
    options = (ctypes.c_char_p * 1)(b"--gpu-architecture=compute_50")
    failed = nvrtc.nvrtcCompileProgram(program, 1, options)
    size = ctypes.c_size_t()
    what = "Log" if failed else "PTX"
    getattr(nvrtc, f"nvrtcGet{'ProgramLog' if failed else 'PTX'}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{'ProgramLog' if failed else 'PTX'}")(program, text)
    if failed:
        sys.exit(f"{what}: {text.value.decode()}")
    return text.value.decode()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        library = next(unpacked(COMPILER, directory).rglob("libnvrtc.so.12"))
        text = re.sub(r"(?m)^\.version .*$", f".version {VERSION}", compiled(library))
        lines = [line for line in text.splitlines() if line and not line.startswith("//")]
        digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()
        PTX.write_text(f"// made of kernels.cu by scripts/kernels.py; sha256 {digest}\n" + "\n".join(lines) + "\n")
        print(f"{PTX.name}: {PTX.stat().st_size} bytes")
        if "--check" in sys.argv:
            for requirement, cards in ASSEMBLERS.items():
                ptxas = next(unpacked(requirement, directory).rglob("ptxas"))
                ptxas.chmod(0o755)
                for card in cards:
                    command = [str(ptxas), f"--gpu-name={card}", "-o", str(directory / "code"), str(PTX)]
                    subprocess.run(command, check=True)
                    print(f"{requirement.split('==')[0]}: {card}")


if __name__ == "__main__":
    main()
