"""SIGTERM, SIGUSR1 and Ctrl-C at any moment, once or twice: a checkpoint, the right status, and the run goes on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.torture import faults
from tests.torture.conftest import Trials

pytestmark = pytest.mark.slow
STATUS = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}


def test_signalled_at_any_moment(trials: Trials) -> None:
    faults.earlier_stage()
    twice = 0
    for random in trials:
        before = faults.last_step()
        process = faults.start(faults.surf(faults.RUN, faults.FOREVER))
        while faults.last_step() == before:
            assert process.is_alive(), faults.said()
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        number = random.choice(list(STATUS))
        os.kill(process.pid, number)
        if random.random() < 0.4:
            twice += 1
            time.sleep(random.choice([0, 0.001, 0.01, 0.05]))
            if process.is_alive():
                os.kill(process.pid, number)
        process.join(faults.PATIENCE)
        ended = process.exitcode
        # A second SIGTERM may come when the run has put the handlers back, at its very end.
        assert ended == STATUS[number] or (ended == -number and number != signal.SIGINT), (ended, faults.said())
    trials.facts |= {"signals": trials.count, "sent twice": twice, "steps": faults.assert_as_if_undisturbed()}
