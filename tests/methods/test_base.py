"""What all stages share: optimizer, schedule, randomness, validation, and the mistakes that are caught."""

from __future__ import annotations

import functools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surf_lightning.data import Digits
from surf_lightning.data.base import Batches
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.methods import SURF, MixIT, MixPIT, Remixing, SupervisedFlow, SupervisedRegression
from surf_lightning.methods.base import SeparationModule
from surf_lightning.metrics.images import ImageMetrics
from tests.methods.test_bfloat16 import CASES, batch
from tests.tiny import adam, digits, mixtures, random, regression, trainer, velocity


def build(method: str, mixit: str, **options: Any) -> SeparationModule:
    options = {"optimizer": adam, **options}
    if method == "MixIT":
        return MixIT(regression(4), **options)
    if method == "SupervisedRegression":
        return SupervisedRegression(regression(), **options)
    if method == "SupervisedFlow":
        return SupervisedFlow(velocity(), **options)
    if method == "Remixing":
        return Remixing(regression(), "self_remixing", mixit_checkpoint=mixit, **options)
    return SURF(velocity(), "remixit", mixit_checkpoint=mixit, **options)


METHODS = ["MixIT", "SupervisedRegression", "SupervisedFlow", "Remixing", "SURF"]


def fit(module: SeparationModule, ckpt_path: str | None = None, batches_per_epoch: int = 2, **options: Any) -> Any:
    fitter = trainer(Path("run"), **{"limit_val_batches": 0, **options})
    fitter.fit(module, digits(batches_per_epoch=batches_per_epoch), ckpt_path=ckpt_path)
    return fitter


# -- the optimizer --


@pytest.mark.parametrize("method", METHODS)
def test_the_optimizer_holds_what_is_trained_and_nothing_else(method: str, mixit: str) -> None:
    module: Any = build(method, mixit)
    fitter = fit(module)
    trained = module.student if hasattr(module, "student") else module.separator
    (group,) = fitter.optimizers[0].param_groups
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in trained.parameters()}
    assert all(parameter.requires_grad for parameter in group["params"])


@pytest.mark.parametrize(
    ("warmup", "decay", "factors"),
    [
        (1, None, {0: 1, 1: 1, 10**6: 1}),
        (0, None, {0: 1, 1: 1}),
        (4, None, {0: 0.25, 1: 0.5, 3: 1, 4: 1}),
        (1, 100, {0: 1, 25: 0.5 + math.sqrt(0.125), 50: 0.5, 100: 0, 200: 0}),
        (10, 100, {4: 0.25 * (1 + math.cos(0.04 * math.pi)), 50: 0.5, 100: 0}),
    ],
)
def test_the_learning_rate_rises_linearly_and_falls_along_a_cosine(
    warmup: int, decay: int | None, factors: dict[int, float]
) -> None:
    module = MixIT(regression(4), optimizer=adam, warmup_steps=warmup, decay_steps=decay)
    for step, factor in factors.items():
        assert module.learning_rate_factor(step) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "options"), [("MixIT", {"decay_steps": 0}), ("SURF", {"ema_decay": 1.5}), ("SURF", {"beta_start": 2.0})]
)
def test_impossible_settings_are_refused_before_anything_runs(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must"):
        build(method, "", **options)


SHARES = {"frozen_steps": (1, 0.25), "beta_steps": (2, 0.5), "decay_steps": (4, 1.0), "teacher_steps": (1, 0.25)}
SCHEDULES = {"SURF": ["frozen_steps", "beta_steps", "decay_steps"], "Remixing": ["teacher_steps", "decay_steps"]}


@pytest.mark.parametrize("method", SCHEDULES)
def test_shares_of_the_run_train_as_their_steps_do_and_say_when_they_change(method: str, mixit: str) -> None:
    weights = []
    for kind in (0, 1):
        module = build(method, mixit, **{name: SHARES[name][kind] for name in SCHEDULES[method]})
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "The run ends at step")
            fit(module, max_steps=4)
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.warns(UserWarning, match=r"ends at step 6, it was to end at 4: decay_steps, .* shares of the run"):
        fit(module, "run/checkpoints/last.ckpt", max_steps=6)


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        (
            "SURF",
            {"frozen_steps": 1, "beta_steps": 4},
            r"step 4, before beta does \(step 5\): beta falls to 0.25, not 0",
        ),
        ("Remixing", {"teacher_steps": 4}, r"before the frozen MixIT's last as the teacher \(step 4\)"),
    ],
)
def test_a_run_too_short_for_its_schedule_says_so(method: str, options: dict[str, Any], says: str, mixit: str) -> None:
    with pytest.warns(UserWarning, match=says):
        fit(build(method, mixit, **options), max_steps=4)


def test_an_optimizer_that_evaluates_the_loss_several_times_is_refused() -> None:
    with pytest.raises(UserError, match="LBFGS evaluates the loss several times a step"):
        fit(MixIT(regression(4), optimizer=torch.optim.LBFGS))


def test_the_learning_rate_changes_with_every_optimizer_step() -> None:
    rates: list[tuple[int, float]] = []

    class Watch(MixIT):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            rates.append((self.global_step, self.trainer.optimizers[0].param_groups[0]["lr"]))
            return super().training_step(batch, batch_idx)

    module = Watch(regression(4), optimizer=adam, warmup_steps=4)
    fit(module, max_steps=3, accumulate_grad_batches=2, batches_per_epoch=6)
    expected = [(0, 0.0025)] * 2 + [(1, 0.005)] * 2 + [(2, 0.0075)] * 2
    assert [step for step, _ in rates] == [step for step, _ in expected]
    assert [rate for _, rate in rates] == pytest.approx([rate for _, rate in expected])


def resume(rate: float) -> list[str]:
    fit(MixIT(regression(4), optimizer=adam, warmup_steps=3))
    again = MixIT(regression(4), optimizer=functools.partial(torch.optim.Adam, lr=rate), warmup_steps=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitter = fit(again, "run/checkpoints/last.ckpt", max_steps=4)
    assert fitter.optimizers[0].param_groups[0]["lr"] == 0.01  # of the checkpoint
    assert again.trained_steps == 2
    return [str(warning.message) for warning in caught if "NOT with those configured" in str(warning.message)]


def test_resuming_with_another_learning_rate_says_that_it_is_not_used() -> None:
    (message,) = resume(0.5)
    assert "'initial_lr': 0.01" in message
    assert "'initial_lr': 0.5" in message


def test_resuming_as_before_says_nothing() -> None:
    assert resume(0.01) == []


# -- randomness --


def test_dropout_is_a_function_of_seed_and_batch_number() -> None:
    drawn: list[list[float]] = []

    class Watch(MixIT):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            drawn[-1].append(float(torch.rand(())))  # what dropout would draw first
            return super().training_step(batch, batch_idx)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            torch.rand(batch_idx + len(drawn))  # whatever else draws does not reach the next batch

    for seed in (0, 1, 0):
        drawn.append([])
        torch.manual_seed(len(drawn))
        fit(Watch(regression(4), optimizer=adam, seed=seed), max_steps=5)
    assert drawn[0] == drawn[2]
    assert len(set(drawn[0] + drawn[1])) == 10


@pytest.mark.parametrize("method", ["SupervisedFlow", "SURF"])
def test_held_out_estimates_do_not_depend_on_the_seed_of_the_run(method: str, mixit: str) -> None:
    mixtures = torch.randn(3, 1, 8, 8)
    first, second = (build(method, mixit, seed=seed).separate(mixtures, 4) for seed in (0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(build(method, mixit).separate(mixtures, 5), first)


# -- what a loss looks at --

IN_PAIRS = ["mixit ncsnpp", "mixpit ncsnpp", "mixcycle ncsnpp"]


@pytest.mark.parametrize("case", [*IN_PAIRS, "remixit ncsnpp", "surf_rm ncsnpp", "surf_sr ncsnpp"])
def test_the_sources_of_a_batch_are_not_looked_at(case: str) -> None:
    module: Any = CASES[case]()
    module.beta = 0.5
    examples = batch(audio=False)
    alone = module.loss({"mixtures": examples["mixtures"]}, random())
    garbage = torch.full_like(examples["sources"], float("nan"))
    assert torch.equal(module.loss({**examples, "sources": garbage}, random()), alone)


@pytest.mark.parametrize("case", IN_PAIRS)
def test_a_single_mixture_cannot_be_paired(case: str) -> None:
    with pytest.raises(UserError, match=r"data\.batch_size to at least 2"):
        CASES[case]().loss({"mixtures": mixtures(1).float()}, random())


# -- validation --


@pytest.mark.parametrize("method", METHODS)
def test_validation_measures_the_separator_against_the_truth(method: str, mixit: str) -> None:
    module, data = build(method, mixit), digits(num_validation=10)
    fitter = trainer(Path("run"))
    fitter.fit(module, data)
    metrics, batches = ImageMetrics(), data.validation_batches()
    for index in range(3):
        batch = batches[index]
        metrics.update(module.separate(batch["mixtures"], index), batch["sources"], batch["mixtures"])
    expected = {f"val/{name}": float(value) for name, value in metrics.compute().items()}
    assert {name: float(fitter.callback_metrics[name]) for name in expected} == pytest.approx(expected, rel=1e-6)


class WithoutTruth(Digits):
    monitor, monitor_mode = "val/loss", "min"

    def validation_batches(self) -> Batches:
        batches: Any = super().validation_batches()
        return [{"mixtures": batches[index]["mixtures"]} for index in range(len(batches))]


@pytest.mark.parametrize("method", ["MixIT", "SURF"])
def test_without_truth_the_loss_is_looked_at_and_picks_the_best(method: str, mixit: str) -> None:
    data = WithoutTruth(batch_size=4, batches_per_epoch=2, num_validation=8, num_test=4)
    module: Any = build(method, mixit)
    fitter = trainer(Path("run"))
    fitter.fit(module, data)
    module.eval()
    batches: Any = data.validation_batches()
    with torch.no_grad():
        losses = [module.loss(batches[index], BatchRandomness(0, index, module.device)) for index in range(2)]
    assert float(fitter.callback_metrics["val/loss"]) == pytest.approx(float(sum(losses)) / 2, rel=1e-5)
    assert Path("run/checkpoints/best.ckpt").is_file()


@pytest.mark.parametrize("method", ["MixIT of 3", "MixPIT", "constrained"])
def test_held_out_batches_too_small_for_the_loss_end_no_run(method: str, mixit: str) -> None:
    earlier: dict[str, Any] = {"mixit_checkpoint": mixit, "shuffle": "constrained", "optimizer": adam}
    module: SeparationModule = {
        "MixIT of 3": lambda: MixIT(regression(4), num_mixtures=3, optimizer=adam),
        "MixPIT": lambda: MixPIT(regression(), optimizer=adam),
        "constrained": lambda: Remixing(regression(), **earlier),
    }[method]()
    few = module.least_mixtures - 1
    data, fitter = WithoutTruth(batch_size=4, batches_per_epoch=2, num_validation=few, num_test=4), trainer(Path("run"))
    data.monitor, data.monitor_mode = "val/momi", "max"
    with pytest.warns(UserWarning, match=f"no val/loss: held-out batches have fewer than {few + 1} mixtures"):
        fitter.fit(module, data)
    assert fitter.global_step == 2
    assert "val/loss" not in fitter.callback_metrics


# -- stages --


def test_a_checkpoint_of_another_method_is_refused_by_name(mixit: str) -> None:
    with pytest.raises(UserError, match=r"is of surf_lightning\.methods\.mixit\.MixIT.*trains.*SURF.*mixit_checkpoint"):
        fit(build("SURF", mixit), mixit, max_steps=4)


def test_a_missing_earlier_stage_says_how_to_train_it() -> None:
    for method in ("SURF", "Remixing"):
        with pytest.raises(UserError, match=r"runs/none\.ckpt of the earlier stage.*_mixit\).*mixit_checkpoint"):
            fit(build(method, "runs/none.ckpt"))


def test_an_earlier_stage_of_other_signals_or_sources_is_refused(mixit: str) -> None:
    checkpoint = torch.load(mixit, weights_only=True)
    checkpoint["surf_lightning"]["signal"]["shape"] = [1, 28, 28]
    torch.save(checkpoint, "mnist.ckpt")
    with pytest.raises(UserError, match=r"2 sources in .*\[1, 28, 28\].*2 sources in .*\[1, 8, 8\]"):
        fit(build("SURF", "mnist.ckpt"))
    checkpoint["surf_lightning"]["signal"]["shape"] = [1, 8, 8]
    separator = checkpoint["surf_lightning"]["separator"]["init_args"]
    separator["num_sources"] = separator["network"]["init_args"]["num_sources"] = 3
    torch.save(checkpoint, "three.ckpt")
    with pytest.raises(
        UserError, match=r"separates 3 sources in images of .* this run 2 .*: give --data.num_sources 3,"
    ):
        fit(build("Remixing", "three.ckpt"))


@pytest.mark.parametrize("num_sources", [1, 3])
def test_a_network_for_another_number_of_sources_than_the_data_s_is_refused(num_sources: int) -> None:
    with pytest.raises(UserError, match=rf"have 2 sources \(data.num_sources\), the network separates {num_sources}"):
        trainer(Path("other")).fit(MixIT(regression(4, num_sources), num_sources, optimizer=adam), digits())


def test_a_fresh_fit_takes_over_the_earlier_stage_and_a_resumed_one_its_own(mixit: str) -> None:
    first: Any = build("SURF", mixit)
    fit(first)
    weights = torch.load(mixit, weights_only=True)["state_dict"]
    for name, value in first.frozen_teacher.state_dict().items():
        assert torch.equal(value, weights[f"separator.{name}"])
    resumed: Any = build("SURF", "gone.ckpt")
    fit(resumed, "run/checkpoints/last.ckpt", max_steps=4)
    for name, value in resumed.frozen_teacher.state_dict().items():
        assert torch.equal(value, weights[f"separator.{name}"])
    assert not any(parameter.requires_grad for parameter in resumed.frozen_teacher.parameters())


@pytest.mark.parametrize("method", ["Remixing", "SURF"])
def test_a_student_may_begin_with_the_weights_of_mixit_that_fit(method: str, mixit: str) -> None:
    still = functools.partial(torch.optim.SGD, lr=0.0)
    module: Any = build(method, mixit, initialize_from_mixit=True, optimizer=still)
    made = {name: value.clone() for name, value in module.student.network.state_dict().items()}
    fit(module)
    theirs = module.frozen_teacher.network.state_dict()
    fitting = {name for name, value in made.items() if name in theirs and theirs[name].shape == value.shape}
    assert {"stem.weight", "heads.0.2.weight"} & {name.removeprefix("trunk.") for name in made.keys() - fitting}
    assert len(fitting) > len(made) / 2
    for separator in (module.student, module.separator):
        for name, value in separator.network.state_dict().items():
            assert torch.equal(value, theirs[name] if name in fitting else made[name]), name


def test_a_resumed_student_does_not_begin_again(mixit: str) -> None:
    fit(build("Remixing", mixit, initialize_from_mixit=True), max_steps=2)
    resumed: Any = build("Remixing", mixit, initialize_from_mixit=True)
    fit(resumed, "run/checkpoints/last.ckpt", max_steps=4)
    whole: Any = build("Remixing", mixit, initialize_from_mixit=True)
    fit(whole, max_steps=4)
    for name, value in whole.student.state_dict().items():
        assert torch.equal(resumed.student.state_dict()[name], value), name


def test_a_mixit_of_another_width_is_nothing_to_begin_with(mixit: str) -> None:
    module = SURF(velocity(channels=8), "remixit", mixit_checkpoint=mixit, initialize_from_mixit=True, optimizer=adam)
    with pytest.raises(UserError, match="no weight of the MixIT network has a namesake of the same shape"):
        fit(module)
