"""The stress process of one GPU: it may hang in the driver, die, or be killed, and nobody else is hurt.

Started through :mod:`obatchd.child`. The thread that talks to the device sends every frame, so silence means that the
device is silent. Another thread listens, and ends the process when the daemon is gone, whatever the device does.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import socket
import threading
from collections.abc import Generator
from functools import partial

import attrs

from obatchd import frames
from obatchd.burnin.stress import links
from obatchd.burnin.stress.compute import Compute, fitting_size
from obatchd.burnin.stress.device import Device, OpenDevice
from obatchd.burnin.stress.memory import Memory
from obatchd.burnin.stress.protocol import (
    WORK_EVERY_S,
    Beat,
    Begin,
    Ended,
    Leave,
    Load,
    Opened,
    ToProcess,
    Trouble,
    to_process,
)
from obatchd.burnin.stress.telling import Meter, Teller
from obatchd.errors import DeviceError

_BESIDE_MEMORY, _ALONE = 0.02, 0.8  # of what is free, at most, for the matrices
_LEFT = 0.03  # of what is free, for the driver and the code of the library, while both loads run


def main(connection: socket.socket, open_device: OpenDevice) -> None:
    """The work of the process."""
    commands: queue.SimpleQueue[ToProcess] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, commands), daemon=True).start()
    teller = Teller(partial(frames.send, connection))
    teller.tell(Beat())  # it runs: for what follows the driver may be to blame
    try:
        _open_and_serve(open_device, teller, commands)
    except DeviceError as error:
        teller.tell(Trouble(error.code, error.message))
    except ConnectionError:
        raise
    except Exception as error:  # the traceback goes to the log
        teller.tell(Trouble("defect", f"The process that loads the GPU has a defect ({type(error).__name__})."))
        raise


def _open_and_serve(open_device: OpenDevice, teller: Teller, commands: queue.SimpleQueue[ToProcess]) -> None:
    device = open_device()
    facts = device.facts
    opened = Opened(
        facts.library, facts.version, facts.name, list(facts.precisions), device.free_bytes(), facts.total_bytes
    )
    teller.tell(opened)
    serve(Stress(device, teller), commands)


def _listen(connection: socket.socket, commands: queue.SimpleQueue[ToProcess]) -> None:
    try:
        with contextlib.suppress(OSError):
            while True:
                commands.put(frames.receive(connection, to_process))
    finally:
        os._exit(0)  # the other end is gone; this thread alone can know while a call into the driver hangs


def serve(stress: Stress, commands: queue.SimpleQueue[ToProcess]) -> None:
    """Do what is commanded until it is time to leave, or the device cannot be used any more."""
    while True:
        try:
            command = commands.get_nowait() if stress.runs else commands.get(timeout=WORK_EVERY_S)
        except queue.Empty:
            if not stress.step():
                return
            continue
        match command:
            case Begin():
                stress.begin(command)
            case Leave():
                stress.end()
                stress.close()
                return
            case _:
                stress.end()


@attrs.define(eq=False)
class Stress:
    """The loads of one device."""

    _device: Device
    _teller: Teller
    _steps: Generator[None] | None = attrs.field(default=None, init=False)
    _loads: list[Load] = attrs.field(factory=list, init=False)  # that run

    @property
    def runs(self) -> bool:
        return self._steps is not None

    def begin(self, begin: Begin) -> None:
        """End what runs, and begin."""
        self.end()
        self._loads = list(dict.fromkeys(begin.loads))
        self._steps = self._run(begin)

    def end(self) -> None:
        """End what runs, and free its memory."""
        if self._steps is not None:
            try:
                self._close_steps()
            except DeviceError as error:
                self._trouble(error)
                return
            self._tell_ended()

    def step(self) -> bool:
        """Go on with what runs. False: the device cannot be used any more."""
        if self._steps is None:
            self._teller.tell(Beat())
            return True
        try:
            next(self._steps)
        except StopIteration:
            self._steps = None
            self._tell_ended()
        except DeviceError as error:
            return self._trouble(error)
        return True

    def close(self) -> None:
        with contextlib.suppress(DeviceError):
            self._device.close()

    def _run(self, begin: Begin) -> Generator[None]:
        if "links" in self._loads:
            yield from self._measure_links()
        free_bytes = self._device.free_bytes()
        with contextlib.ExitStack() as stack:
            compute = memory = None
            if "compute" in self._loads:
                compute = self._compute(begin, free_bytes * (_BESIDE_MEMORY if "memory" in self._loads else _ALONE))
                stack.callback(_free, compute)
            if "memory" in self._loads:
                wanted_bytes = free_bytes * begin.memory_percent / 100
                if compute is not None:
                    wanted_bytes = min(wanted_bytes, free_bytes * (1 - _LEFT) - compute.most_bytes)
                memory = Memory(self._device, self._teller, int(wanted_bytes), begin.seed)
                memory.meter.free_bytes = free_bytes
                stack.callback(_free, memory)
            yield from self._together(compute, memory)

    def _together(self, compute: Compute | None, memory: Memory | None) -> Generator[None]:
        """Both at once where both are asked for: memory is worked on while the products run."""
        clock, step_s = self._teller.clock, self._device.facts.step_s
        if compute is not None:
            compute.start()
            compute.finish()
        if memory is not None:
            yield from memory.allocate()
        steps = memory.steps(alone=compute is None) if memory is not None else itertools.repeat(None)
        while compute is not None or memory is not None:
            if compute is not None:
                compute.start()
            until_s = clock.monotonic() + step_s
            next(steps)
            while memory is not None and clock.monotonic() < until_s:
                next(steps)
            if compute is not None:
                compute.finish()
            yield

    def _measure_links(self) -> Generator[None]:
        meter = Meter("links", self._teller)
        yield from links.measure(self._device, self._teller, meter)
        meter.tell()
        self._loads.remove("links")
        self._teller.tell(Ended("links"))

    def _compute(self, begin: Begin, most_bytes: float) -> Compute:
        has = self._device.facts.precisions
        precisions = [precision for precision in begin.precisions or has if precision in has]
        if not precisions:
            words = f"{self._device.facts.name} computes in {', '.join(has)}, not in {', '.join(begin.precisions)}."
            raise DeviceError(words, code="no_precision")
        size = fitting_size(self._device, precisions, most_bytes)
        return Compute(self._device, self._teller, precisions, begin.seed, size)

    def _trouble(self, error: DeviceError) -> bool:
        """Tell it; whether the device can still be used."""
        self._loads.clear()
        self._steps = None
        self._teller.tell(Trouble(error.code, error.message))
        return not error.is_final

    def _close_steps(self) -> None:
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()

    def _tell_ended(self) -> None:
        for load in self._loads:
            self._teller.tell(Ended(load))
        self._loads.clear()


def _free(load: Compute | Memory) -> None:
    with contextlib.suppress(DeviceError):  # of a device that is lost; what led to it is on its way
        load.free()
