"""gpu-burn (github.com/wilicc/gpu-burn) as a load of one GPU, which alone it is shown.

What it says at its end is not believed: it says OK after no work at all (its issue 124) and after a start that failed
(14), exits with 0 when results were wrong (12), and counts whatever is in an unset variable as errors of a process that
has died (52, 69). So the verdict comes from its lines of progress, and those of a card that stopped working, which go
on, are no work. Its temperatures are not read: with a choice of GPUs they are those of others (105); the probe has
ours. Forms of lines and numbers: gpu_burn-drv.cpp at 3ead140.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import attrs

from obatchd.burnin.stress.outside import program
from obatchd.burnin.stress.outside.outcome import Outcome
from obatchd.words import counted

NAMES = ("gpu_burn", "gpu-burn")
_OPERATIONS = 1_100_048_498_688  # of a product: OPS_PER_MUL
_AFTER_S = 120.0  # to start, and to end by itself: it gives its own processes 30 s
_ENOUGH = 75  # percent of the time: a line of progress comes with a round of products, which takes 11 s on large cards
_LINE_CHARACTERS = 4096
_PROGRESS = re.compile(r"([\d.]+)%\s+proc'd:\s*(-?\d+) \(.*?\).*?errors:\s*(-?\d+)")
_FINAL = re.compile(r"^\s*GPU \d+: (OK|FAULTY)\s*$")
_TESTED = re.compile(r"^Tested (\d+) GPUs")
_TROUBLES = ("Couldn't init", "Failure during compute", "No CUDA devices", "No clients are", "error while loading")


def find() -> str:
    """The program on PATH; empty where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), "")


@attrs.define(eq=False)
class Burn:
    """Reads what gpu-burn says about its only GPU."""

    percent: float = attrs.field(default=0.0, init=False)  # of the time, when it had last computed something
    tested: int = attrs.field(default=1, init=False)  # GPUs
    products: int = attrs.field(default=0, init=False)
    wrong: int = attrs.field(default=0, init=False)
    died: bool = attrs.field(default=False, init=False)
    said: str = attrs.field(default="", init=False)  # its own verdict
    trouble: str = attrs.field(default="", init=False)
    _since_summary: int = attrs.field(default=0, init=False)  # errors; it counts from 0 after each summary
    _rest: str = attrs.field(default="", init=False)

    def feed(self, text: str) -> None:
        *lines, self._rest = re.split(r"[\r\n]", self._rest + text)
        self._rest = self._rest[-_LINE_CHARACTERS:]  # a process that has died has it say the same line again and again
        for line in lines:
            self._take(line)

    def _take(self, line: str) -> None:
        if (final := _FINAL.match(line)) is not None:
            self.said = final[1]
        elif (tested := _TESTED.match(line)) is not None:
            self.tested = int(tested[1])
        elif (progress := _PROGRESS.search(line)) is not None:
            self._count(float(progress[1]), int(progress[2]), int(progress[3]))
        elif not self.trouble and any(words in line for words in _TROUBLES):
            self.trouble = line.strip()[:200]

    def _count(self, percent: float, products: int, errors: int) -> None:
        if products < 0:
            self.died = True
        if self.died:
            return
        if products > self.products:
            self.percent, self.products = percent, products
        if errors:
            # The sum of a C int may have run over; that there are errors is certain, how many is not.
            self.wrong += max(errors - self._since_summary if errors > self._since_summary else errors, 1)
        self._since_summary = errors

    def outcome(self, ended: program.Ended) -> Outcome:
        """The verdict, once the program has ended."""
        self._take(self._rest)
        operations = self.products * _OPERATIONS
        because = f": {self.trouble}" if self.trouble else ""
        done = f"after {counted(self.products, 'product')}"
        if self.wrong or (self.said == "FAULTY" and not self.died):
            words = f"computed wrong results ({counted(self.wrong, 'wrong element')} counted) {done}"
            return Outcome("wrong_results", words, self.wrong, operations)
        if self.died:
            return Outcome("not_done", f"lost its process on the GPU {done}{because}", 0, operations)
        if not self.products:
            return Outcome("not_done", f"computed nothing{because}")
        if ended.timed_out or ended.left_behind:
            return Outcome("not_done", f"did not end in time {done}", 0, operations)
        if self.tested != 1:
            return Outcome("not_done", f"tested {counted(self.tested, 'GPU')} at once instead of one", 0, operations)
        if self.percent < _ENOUGH or self.said != "OK":
            words = f"computed nothing more after {self.percent:.0f} % of the time, {done}{because}"
            return Outcome("not_done", words, 0, operations)
        return Outcome("passed", f"computed {counted(self.products, 'product')} without a wrong one", 0, operations)


async def burn(path: str, uuid: str, seconds: float) -> Outcome:
    """Load one GPU for some time. It takes 90 % of the memory that is free."""
    reader = Burn()
    environment = {"CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    resolved = str(Path(path).resolve())  # its folder has the file with the code that compares
    try:
        ended = await program.run([resolved, str(round(seconds))], environment, reader, seconds + _AFTER_S)
    except OSError as error:
        return Outcome("not_done", f"cannot be started: {error.strerror}")
    return reader.outcome(ended)
