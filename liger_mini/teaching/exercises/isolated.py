"""Run a student's code where it can do no harm: a forked process with a time limit, no input, and its output caught.

On Linux the process that has imported torch is forked, which takes milliseconds, and functions of a notebook need not be
pickled. Elsewhere (and where autograd has started its threads for a GPU, which no fork survives) the code runs in a thread.
A thread is stopped between two lines of Python; one that hangs within a line of C is left behind.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import faulthandler
import io
import os
import pickle
import selectors
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

PRINTED = 1_000_000  # bytes of output: more are a failure
SHOWN = 2_000  # characters of it that are kept
MEMORY = 4 * 2**30  # bytes beyond what the parent has
GRACE = 1.0  # seconds between the exception that stops the code and the signal that ends its process
NO_FORK = "autograd cannot be forked"


class Stopped(BaseException):
    """The time is over. Not an Exception, so that `except Exception` does not catch it."""


@dataclass(frozen=True)
class Ended:
    """How the work ended: its value, or in words why there is none, and the beginning of what it printed."""

    value: Any = None
    why: str = ""
    printed: str = ""


def isolated(work: Callable[[], Any], seconds: float) -> Ended:
    """Run `work` for at most `seconds`; its value has to be picklable. It should catch what its guests raise."""
    ended = _forked(work, seconds) if sys.platform == "linux" else Ended(why=NO_FORK)
    return _threaded(work, seconds) if ended.why == NO_FORK else ended


@contextlib.contextmanager
def usual_settings() -> Any:
    """Gradients on and float32 by default, whatever the notebook has set."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def _refuse_input(prompt: object = "") -> NoReturn:
    raise EOFError("input() has nobody to ask here: a function gets all it needs as arguments")


def _stop(*_: object) -> NoReturn:
    raise Stopped


def _forked(work: Callable[[], Any], seconds: float) -> Ended:
    result_in, result_out = os.pipe()
    output_in, output_out = os.pipe()
    with warnings.catch_warnings():  # about forking beside threads: the child runs none of their code
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        _child(work, seconds, result_out, output_out)
    os.close(result_out)
    os.close(output_out)
    try:
        result, printed, late = _listen(result_in, output_in, time.monotonic() + seconds + GRACE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # before it had a group of its own
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(result_in)
        os.close(output_in)
    shown = printed[:SHOWN].decode("utf-8", "replace")
    if len(printed) > PRINTED:
        return Ended(None, f"Your code printed more than {PRINTED // 10**6} MB. Take the prints out.", shown)
    if late:
        return Ended(
            None, f"Your code was still running after {seconds:g} seconds and was stopped: an endless loop?", shown
        )
    if not result:
        signalled = os.WIFSIGNALED(status) and signal.Signals(os.WTERMSIG(status)).name
        return Ended(None, f"Your code ended the interpreter ({signalled or 'os._exit'}).", shown)
    value, why = pickle.loads(result)
    return Ended(value, why, shown)


def _listen(result: int, output: int, deadline: float) -> tuple[bytes, bytes, bool]:
    """(result, output, whether the time ran out), read until the result is complete or something is too much."""
    parts: dict[int, bytearray] = {result: bytearray(), output: bytearray()}
    with selectors.DefaultSelector() as selector:
        for pipe in parts:
            os.set_blocking(pipe, False)
            selector.register(pipe, selectors.EVENT_READ)
        while result in selector.get_map() and len(parts[output]) <= PRINTED:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return b"", bytes(parts[output]), True
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                parts[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
    with contextlib.suppress(BlockingIOError):  # what was printed last
        while len(parts[output]) <= PRINTED and (data := os.read(output, 1 << 16)):
            parts[output] += data
    return bytes(parts[result]), bytes(parts[output]), False


def _child(work: Callable[[], Any], seconds: float, result: int, output: int) -> NoReturn:
    """All that the forked process ever does."""
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdin = io.StringIO()
        sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w"), "utf-8", errors="replace", line_buffering=True)
        builtins.input = _refuse_input
        faulthandler.disable()  # the parent's would report a crash of the child on the parent's terminal
        _limit_memory()
        torch.set_num_threads(1)  # a pool of threads does not survive a fork; as DataLoader's workers do
        message = pickle.dumps(_timed(work, seconds))
    except BaseException as error:  # a bug of ours, or an exception that came after the time was over
        message = pickle.dumps((None, f"The check itself failed ({type(error).__name__}: {error}). Please report it."))
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        os.set_blocking(result, True)
        while message:
            message = message[os.write(result, message) :]
    os._exit(0)


def _timed(work: Callable[[], Any], seconds: float) -> tuple[Any, str]:
    try:
        torch.zeros(1, requires_grad=True).sum().backward()
    except RuntimeError:
        return None, NO_FORK
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with usual_settings():
        value = work()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return value, ""


def _limit_memory() -> None:
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + MEMORY if hard == resource.RLIM_INFINITY else min(now + MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


class _Beginning(io.StringIO):
    """Keeps the first `PRINTED` characters."""

    def write(self, text: str) -> int:
        room = PRINTED + 1 - self.tell()
        return super().write(text[: max(0, room)]) and len(text)


def _threaded(work: Callable[[], Any], seconds: float) -> Ended:
    """The same in a thread of this process, as far as that goes."""
    done: dict[str, Any] = {}

    def run() -> None:
        try:
            with usual_settings():
                done["value"] = work()
        except BaseException as error:
            done["error"] = error

    asked, threads, printed = builtins.input, torch.get_num_threads(), _Beginning()
    thread = threading.Thread(target=run, daemon=True)
    try:
        builtins.input = _refuse_input
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            thread.start()
            thread.join(seconds)
            if thread.is_alive():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stopped))
                thread.join(GRACE)
    finally:
        builtins.input = asked
        torch.set_num_threads(threads)
    shown = printed.getvalue()[:SHOWN]
    if printed.tell() > PRINTED:
        return Ended(None, f"Your code printed more than {PRINTED // 10**6} MB. Take the prints out.", shown)
    if "value" in done:
        return Ended(done["value"], "", shown)
    if thread.is_alive() or isinstance(done["error"], Stopped):
        return Ended(
            None, f"Your code was still running after {seconds:g} seconds and was stopped: an endless loop?", shown
        )
    return Ended(None, f"The check itself failed ({done['error']!r}). Please report it.", shown)
