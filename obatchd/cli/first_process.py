"""obatchd as the first process of a container: one small process in front, which adopts and reaps.

The kernel gives every process whose parent has ended to process 1 of its PID namespace, such as an Ollama runner whose
server crashed, and keeps it as a zombie until that one waits for it. The daemon cannot wait for any process at all,
because it has children of its own, whose ends belong to other parts. A signal without a handler does nothing to
process 1 (pid_namespaces(7)), so here each one that may end a daemon is passed on.
"""

from __future__ import annotations

import os
import signal
import sys

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_BY_THE_KERNEL = 0x80  # SI_KERNEL: a terminal has sent it to the whole process group, so to the daemon, too


def stand_before() -> None:
    """Return in a child of this process; here, reap until that child ends, and end as it does.

    To be called before there is any thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *_PASSED_ON})
    daemon = os.fork()
    if daemon == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        found = signal.sigwaitinfo({signal.SIGCHLD, *_PASSED_ON})
        if found.si_signo != signal.SIGCHLD:
            if found.si_code != _BY_THE_KERNEL:
                os.kill(daemon, found.si_signo)
        elif (status := _reap(daemon)) is not None:
            code = os.waitstatus_to_exitcode(status)
            sys.stderr.flush()
            os._exit(code if code >= 0 else 128 - code)  # as a shell says it


def _reap(daemon: int) -> int | None:
    """Wait for every process that has ended; the status of the daemon, if it is among them."""
    ended = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid == daemon:
            ended = status
