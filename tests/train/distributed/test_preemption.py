"""Signals ask a run to stop after its update."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from train.distributed.preemption import StoppedError, preemption_guard, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_run_and_handlers_are_put_back(number: signal.Signals) -> None:
    previous = signal.getsignal(number)
    with preemption_guard() as should_stop:
        assert not should_stop(1)
        os.kill(os.getpid(), number)
        assert should_stop(2)
        # A second signal ends the program at once.
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        # But a terminal sends SIGHUP more than once.
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(number) is previous


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_where_nothing_is_lost(number: signal.Signals) -> None:
    previous = signal.getsignal(number)
    with pytest.raises(StoppedError, match=number.name), stop_on_signals():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is previous
    with (
        pytest.raises(StoppedError),
        stop_on_signals(),
        preemption_guard() as should_stop,
        should_stop.at_once(),
    ):
        os.kill(os.getpid(), number)
    with stop_on_signals(), preemption_guard() as should_stop:
        with should_stop.at_once():
            pass
        os.kill(os.getpid(), number)
        assert should_stop(2)
    assert signal.getsignal(number) is previous


def test_the_second_hangup_of_a_terminal_cuts_nothing_short() -> None:
    with stop_on_signals():
        with preemption_guard() as should_stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert should_stop(1)
        os.kill(os.getpid(), signal.SIGHUP)  # While what was saved is uploaded, for one.


def test_a_signal_that_is_ignored_stays_so_after_another() -> None:
    ignored = signal.SIGHUP, signal.SIGINT
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        with stop_on_signals(), preemption_guard() as should_stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not should_stop(1)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            assert should_stop(2)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# One call that says that it has begun and then waits, as for a compiler, while Python lives.
BUSY = """
import ctypes, os
from train.distributed.preemption import stop_on_signals
end, _ = os.pipe()
os.set_inheritable(end, True)
with stop_on_signals():
    ctypes.CDLL(None).system(f"echo busy; exec cat <&{end} >/dev/null 2>&1".encode())
"""
# A signal that Python handles in a callback, whose exceptions it drops.
IN_A_CALLBACK = """
import gc, os, signal
from train.distributed.preemption import stop_on_signals
with stop_on_signals():
    gc.callbacks.append(lambda phase, info: signal.raise_signal(signal.SIGTERM))
    gc.collect()
    print("it went on")
"""


@pytest.mark.parametrize(
    ("number", "count"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGHUP, 2)]
)
def test_a_signal_is_heard_while_python_waits_for_a_compiler(
    number: signal.Signals, count: int
) -> None:
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"busy\n"
        for _ in range(count):
            process.send_signal(number)
            time.sleep(0.2)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors == f"gmt-train: error: stopped by {number.name}\n".encode()


def test_a_signal_is_heard_where_python_drops_exceptions() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_CALLBACK], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "gmt-train: error: stopped by SIGTERM\n"


def test_calls_to_a_closed_loop_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ends:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def __del__(self) -> None:
            raise self.error

    shown: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: shown.append(str(args.exc_value)))
    loop = asyncio.new_event_loop()
    loop.close()
    with stop_on_signals():
        with pytest.raises(RuntimeError) as closed:
            loop.call_soon_threadsafe(print)
        Ends(closed.value)
        Ends(RuntimeError("another"))
    assert shown == ["another"]
