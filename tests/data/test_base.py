"""Batches over several processes: those that prepare them, and those that share them out."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import pytest
import torch

from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks
from tests.tiny import digits


def test_workers_outlive_the_signals_that_a_run_stops_by_and_then_end() -> None:
    data = digits(num_workers=1)
    batches: Any = data.training_batches(Ranks())
    loader = data._loader(batches, range(1000), 1)
    iterator: Any = iter(loader)
    (worker,) = iterator._workers
    next(iterator)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        os.kill(worker.pid, number)
    for index in range(1, 8):  # more than were prepared before the signals came
        assert torch.equal(next(iterator)["mixtures"], batches[index]["mixtures"])
    with contextlib.suppress(RuntimeError):  # the loader's, of the worker's death
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(60)
    worker.join(60)
    assert worker.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_no_rank_is_left_without_held_out_mixtures(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits(num_validation=2, num_test=3)
    monkeypatch.setattr(data, "_ranks", lambda: Ranks(rank, 3))
    with pytest.raises(UserError, match="2 batches of held-out mixtures cannot be shared out among 3 processes"):
        data.val_dataloader()
    (batch,) = data.test_dataloader()
    whole: Any = digits(num_test=3).test_batches()
    assert torch.equal(batch["mixtures"], whole[0]["mixtures"][rank : rank + 1])
