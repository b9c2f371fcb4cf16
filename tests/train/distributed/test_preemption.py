"""Signals ask a run to stop after its update."""

import os
import signal

import pytest

from train.distributed.preemption import preemption_guard


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_handlers_are_put_back(number: signal.Signals) -> None:
    previous = signal.getsignal(number)
    with preemption_guard() as should_stop:
        assert not should_stop(1)
        os.kill(os.getpid(), number)
        assert should_stop(2)
        # A second signal ends the program at once.
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(number) is previous
