"""The training states of a checkpoint, in which a stranger may have put anything: continued, or refused in words."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from surf_lightning.engine.lightning_cli import _while_restoring
from surf_lightning.errors import UserError
from surf_lightning.methods import MixIT
from tests.tiny import adam, digits, mixit_checkpoint, regression, trainer

VALUES = [
    *(None, True, -1, 10**12, 10**400, 1e308, float("nan"), "", "../../victim", b"x", [], [1, 2, 3], {}, {"a": 1}),
    *(torch.zeros(3), torch.full((2, 2), torch.nan), torch.tensor(2**40)),
]
DELETED = object()


def places(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all that ``state`` holds, of a list to its first two."""
    items = state.items() if isinstance(state, dict) else enumerate(state[:2]) if isinstance(state, list) else ()
    for key, value in items:
        if key != "state_dict" or path:
            yield (*path, key)
            yield from places(value, (*path, key))


def changed(checkpoint: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    checkpoint = parent = copy.deepcopy(checkpoint)
    for key in path[:-1]:
        parent = parent[key]
    if value is DELETED:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return checkpoint


def go_on(checkpoint: dict[str, Any]) -> MixIT:
    torch.save(checkpoint, "foreign.ckpt")
    module = MixIT(regression(4), optimizer=adam)
    trainer(Path("again"), max_steps=3, limit_val_batches=0).fit(module, digits(), ckpt_path="foreign.ckpt")
    return module


def whole() -> dict[str, Any]:
    path = Path("begun/checkpoints/last.ckpt")
    checkpoint: dict[str, Any] = torch.load(
        path if path.exists() else mixit_checkpoint(Path("begun")), weights_only=True
    )
    return checkpoint


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("optimizer_states", 0, "state", 3, "exp_avg"), DELETED, "KeyError: 'exp_avg'"),
        (("optimizer_states", 0, "state", 3, "exp_avg"), torch.zeros(1, 7), "RuntimeError"),
        (("optimizer_states", 0, "state", 3, "exp_avg_sq"), None, "AttributeError"),
        (("optimizer_states", 0, "state", 3, "step"), -1, "ZeroDivisionError"),
        (("optimizer_states", 0, "state", 3), [], "TypeError"),
        (("optimizer_states", 0, "param_groups", 0, "amsgrad"), True, "KeyError: 'max_exp_avg_sq'"),
        (("optimizer_states", 0, "param_groups", 0, "capturable"), True, "AssertionError"),
        (("optimizer_states", 0, "param_groups", 0, "eps"), torch.nan, "not finite"),
        (("lr_schedulers", 0, "base_lrs"), [], "ValueError"),
        (("lr_schedulers", 0, "base_lrs"), [torch.inf], "schedule does not fit .it is not finite"),
        (("loops", "fit_loop", "epoch_progress", "current", "ready"), None, "None in place of a count"),
        (("loops", "fit_loop", "epoch_progress", "current"), [], "list in place of counts"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(path: tuple[Any, ...], value: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"the checkpoint cannot be continued: .*{said}"):
        go_on(changed(whole(), path, value))


def test_an_average_of_gradients_that_is_not_finite_is_refused() -> None:
    checkpoint = whole()
    checkpoint["optimizer_states"][0]["state"][3]["exp_avg"].fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        go_on(checkpoint)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.NAdam, torch.optim.Adafactor, torch.optim.RMSprop])
def test_what_any_optimizer_keeps_is_continued(optimizer: Any) -> None:
    for steps, checkpoint in ((2, None), (3, "run/checkpoints/last.ckpt")):
        module = MixIT(regression(4), optimizer=lambda weights: optimizer(weights, lr=1e-3))
        trainer(Path("run"), max_steps=steps, limit_val_batches=0).fit(module, digits(), ckpt_path=checkpoint)
    assert module.trainer.global_step == 3


def check_any_training_state(data: st.DataObject) -> None:
    """One value of a checkpoint, its weights apart, is another one, or missing."""
    checkpoint = whole()
    by_part: dict[str, list[tuple[Any, ...]]] = {}
    for path in places(checkpoint):
        by_part.setdefault(path[0], []).append(path)
    path = data.draw(st.sampled_from(by_part[data.draw(st.sampled_from(sorted(by_part)))]))
    before = {file for file in Path().rglob("*") if file.parts[0] != "again"}
    try:
        module = go_on(changed(checkpoint, path, data.draw(st.sampled_from([*VALUES, DELETED]))))
    except Exception as error:
        if not isinstance(error, UserError) and not _while_restoring(error):
            raise
    else:
        assert all(weight.isfinite().all() for weight in module.parameters())
    after = {file for file in Path().rglob("*") if file.parts[0] != "again"}
    assert after - before <= {Path("foreign.ckpt")}
    assert before <= after


@seed(0)
@settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_training_state_is_continued_or_refused_in_words(data: st.DataObject) -> None:
    check_any_training_state(data)
