"""The loads ``compute`` and ``memory`` on one GPU: commands to its stress process, and what that says, written down.

Whatever becomes of the process, only the loads of this GPU end, and the run goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
import zlib
from collections.abc import Sequence

from obatchd import log
from obatchd.burnin.journal.recorder import Worked
from obatchd.burnin.journal.records import Event, LinkSpeed, StressEnded, StressOpened, WrongResult
from obatchd.burnin.run.plan import STRESS
from obatchd.burnin.run.ports import RunHost, RunServer, StressProcess
from obatchd.burnin.run.recording import Recording
from obatchd.burnin.stress.protocol import (
    SILENT_S,
    Bandwidth,
    Begin,
    End,
    Ended,
    FromProcess,
    LinkKind,
    Load,
    Opened,
    Trouble,
    Work,
    Wrong,
)
from obatchd.documents.burnin.plan import Plan
from obatchd.tasks import TaskOwner, TaskSet, set_within

_log = log.get(__name__)
_BEGIN_S = 180.0  # until work is told: the library is loaded, and memory is taken
_REST_S = SILENT_S + 10  # a process that does not answer is killed before
_LINKS_S = 180.0  # with the start of the process
_QUIET_S = 6.0  # work is told every 2 s; after so long without any, the GPU counts as not loaded
_STRESS: tuple[Load, ...] = ("compute", "memory")
_BESIDE = "out_of_memory"  # beside a model that leaves nothing: no fault


class StressLoad:
    """Products and patterns on one GPU."""

    carries = STRESS

    def __init__(
        self, gpu: str, server: RunServer, host: RunHost, plan: Plan, recording: Recording, owner: TaskOwner
    ) -> None:
        self.gpu = gpu
        self.over = False  # they do not begin again
        self._server = server
        self._host = host
        self._owner = owner
        self._process = host.stress(gpu, owner)
        self._plan = plan
        self._recording = recording
        self._tasks = TaskSet(owner)
        self._wanted: list[Load] = []
        self._beside = False  # a model is on the GPU, too
        self._running: set[Load] = set()
        self._opened, self._at_work, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._told_s = self._counted_s = time.monotonic()

    def start(self) -> None:
        """Start the process; it waits for a command."""
        self._process.start()
        self._tasks.start(self._listen(), f"burnin-stress-{self.gpu}")

    async def begin(self, loads: Sequence[str]) -> None:
        self._wanted = [load for load in _STRESS if load in loads]
        self._beside = "model" in loads
        await set_within(_BEGIN_S, self._opened)
        if self.usable:
            if not self._running:
                self._command(self._wanted)
            await set_within(_BEGIN_S, self._at_work)
        self._counted_s = time.monotonic()

    async def rest(self) -> None:
        self._wanted = []
        if self._running and not self.over:
            self._process.send(End())
            await set_within(_REST_S, self._idle)

    @property
    def usable(self) -> bool:
        """Whether the GPU can be asked for anything now."""
        return not self.over and self._server.ready_for_test

    async def measure_links(self, peers: Sequence[str]) -> None:
        """Measure the bandwidth to the host and to other GPUs, while the GPU does nothing else."""
        process = self._host.stress(self.gpu, self._owner, peers)
        process.start()
        done = False
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINKS_S):
                    done = await self._hear_links(process)
        finally:
            gone = await process.end()
        if not done:
            why = gone.words if gone.code != "left" else f"was not done after {_LINKS_S:g} s"
            text = f"its links could not be measured: the process {why}"
            self._recording.note(Event(time.time(), self.gpu, "links_unknown", text, "warn"))

    async def _hear_links(self, process: StressProcess) -> bool:
        """Whether all were measured, or cannot be; of the measurements of one link the median is written down."""
        measured: dict[tuple[LinkKind, str], list[float]] = {}
        async for frame in process.frames():
            match frame:
                case Opened():
                    process.send(Begin(["links"], 0.0, [], 0))
                case Bandwidth(_, kind, peer, bytes_per_s):
                    measured.setdefault((kind, peer), []).append(bytes_per_s)
                case Trouble(_, text):
                    self._recording.note(Event(time.time(), self.gpu, "links_unknown", text, "note"))
                    return True
                case Ended():
                    for (kind, peer), speeds in measured.items():
                        speed = statistics.median(speeds)
                        self._recording.note(LinkSpeed(time.time(), self.gpu, kind, speed, peer))
                    return True
                case _:
                    pass
        return False

    def look(self) -> None:
        now_s = time.monotonic()
        span_s, self._counted_s = now_s - self._counted_s, now_s
        if self._running and now_s - self._told_s < _QUIET_S:
            self._recording.recorder.stressed(self.gpu, span_s)
        if self.over:
            return
        if self.gpu in self._recording.watch.urgent:
            self._end("stopped", "its loads were taken away at once, because the GPU is in danger")
            self._tasks.start(self._leave(), f"burnin-stress-end-{self.gpu}")
        elif self._running and not self._server.ready_for_test:  # drained, lent, closed
            self._process.send(End())
        elif self._wanted and not self._running and self._server.ready_for_test:
            self._command(self._wanted)

    async def close(self) -> None:
        self._wanted = []
        await self._leave()
        await self._tasks.stop()

    async def _leave(self) -> None:
        gone = await self._process.end()
        if gone.left_behind:
            _log.warning("burnin_stress_left_behind", gpu=self.gpu, reason=gone.words)

    def _command(self, loads: list[Load]) -> None:
        self._running = set(loads)
        self._at_work.clear()
        self._idle.clear()
        self._told_s = time.monotonic()
        # The same contents on all GPUs of the run: those of one kind can be compared.
        seed = zlib.crc32(self._plan.run.encode())
        if not self._process.send(Begin(loads, self._plan.memory_percent, [], seed)):
            self._running.clear()  # it is not there yet, or not any more

    # --- what it says -----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for frame in self._process.frames():
            self._hear(frame)
        if (gone := self._process.gone) is not None and gone.code != "left":
            behind = "; it hangs in the kernel and was left behind" if gone.left_behind else ""
            self._end(gone.code, f"the process {gone.words}{behind}")

    def _hear(self, frame: FromProcess) -> None:
        recording, gpu = self._recording, self.gpu
        match frame:
            case Opened(library, version, device, precisions):
                self._opened.set()
                recording.note(StressOpened(time.time(), gpu, library, version, device, precisions))
            case Work():
                self._count(frame)
            case Wrong(at_s, load, place, pattern, expected, found, times):
                recording.note(WrongResult(at_s, gpu, load, place, pattern, expected, found, times))
                _log.warning("burnin_wrong_result", gpu=gpu, load=load, place=place)
            case Ended(load):
                self._stopped({load})
            case Trouble(code, text):
                if code == _BESIDE and self._beside:
                    recording.note(Event(time.time(), gpu, "stress_no_room", f"no memory beside the model: {text}"))
                    self._wanted = []
                    self._stopped(self._running)
                    self._at_work.set()
                else:
                    self._end(code, text)
            case _:
                pass

    def _count(self, work: Work) -> None:
        wrong = {"wrong_tiles" if work.load == "compute" else "wrong_words": work.wrong}
        self._recording.recorder.worked(
            self.gpu,
            Worked(
                precision=work.precision,
                first=work.first,
                operations=work.operations,
                operating_s=work.operating_s,
                bytes_written=work.bytes_written,
                bytes_checked=work.bytes_checked,
                accessing_s=work.accessing_s,
                covered_bytes=work.covered_bytes,
                free_bytes=work.free_bytes,
                passes=work.passes,
                **wrong,
            ),
        )
        self._told_s = time.monotonic()
        if work.load in self._running:
            self._at_work.set()

    def _stopped(self, loads: set[Load]) -> None:
        self._running = self._running - loads
        if not self._running:
            self._idle.set()

    def _end(self, code: str, text: str) -> None:
        """The loads of this GPU are over, and that is written down once."""
        if self.over:
            return
        self.over = True
        self._recording.note(StressEnded(time.time(), self.gpu, code, text))
        _log.warning("burnin_stress_ended", gpu=self.gpu, code=code, reason=text)
        self._stopped(set(self._running))
        self._at_work.set()
        self._opened.set()
