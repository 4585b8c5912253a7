"""What all training stages share: optimizer, randomness, validation. Axes: B batch, K sources, *S the signal."""

from __future__ import annotations

import copy
import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from surf_lightning.callbacks.beta_schedule import Steps, check_steps
from surf_lightning.callbacks.ema_teacher import EMATeacher
from surf_lightning.callbacks.finite_steps import FiniteSteps
from surf_lightning.callbacks.momi import MeasureMoMi
from surf_lightning.data.base import SeparationData, batches_done, undeclared
from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import BatchRandomness, Ranks, mix_seed
from surf_lightning.inference.checkpoint import KEY, check_fits, checkpoint_metadata, class_path
from surf_lightning.inference.sampling import posterior
from surf_lightning.inference.separator import Separator, compile_networks, in_micro_batches, load_separator
from surf_lightning.methods.beginnings import begin_with, optimizer_settings, shared_weights
from surf_lightning.methods.restored import check_average, check_kind, check_optimizer, check_progress, plain_number
from surf_lightning.methods.schedules import ScheduledModule

Batch = dict[str, Tensor]
HELD_OUT_SEED = 0  # held-out mixtures are separated from the same noise in every run


class SeparationModule(ScheduledModule, ABC):
    """A training stage. Subclasses give ``loss``.

    Args:
        separator: what evaluation, checkpoints and users separate with.
        optimizer: makes the optimizer from the parameters.
        ema_decay: alpha of an exponential moving average of the trained weights, which separates in their place, see
            ``callbacks.EMATeacher``; None keeps none.
        ema_every: optimizer steps between two moves of that average.
        warmup_steps: optimizer steps in which the learning rate rises linearly to its value.
        decay_steps: optimizer step at which the learning rate has fallen to zero along half a cosine, or, a float in
            (0, 1], its share of the whole run: 1.0 is the end of the run. None keeps the rate.
        micro_batch: examples that a network sees at once; None: all. It bounds the memory, the result is the same, at
            the cost of one more evaluation of the trained network without gradient.
        compile: evaluate the networks by ``torch.compile``: minutes of compilation at the start (it needs a C++
            compiler) for faster steps, on GPUs above all. Checkpoints are the same with and without.
        initial_checkpoint: of any separator, such as MixIT's before supervised training: a checkpoint, an exported
            folder or hf://user/name. A fit begins with those of its weights that have a namesake of the same shape.
        max_skipped_steps: so many steps in a row without a finite gradient end it, see ``callbacks.FiniteSteps``.
        seed: every random number of training batch i is a function of (seed, i). The command line sets it to
            seed_everything.
    """

    separator: Separator
    student: Separator
    follower: EMATeacher | None
    signal: dict[str, Any]
    label: str
    """The method's name in the tables of the paper."""
    needs_sources = False
    """Whether it learns from true sources: training batches then hold them, and tables rank it apart."""
    least_mixtures = 1
    """How many mixtures the loss of one process needs."""
    is_oracle = False
    """Whether it looks at the true sources, has nothing to train, and is tested without a checkpoint."""

    def __init__(
        self,
        separator: Separator,
        optimizer: OptimizerCallable,
        ema_decay: float | None = None,
        ema_every: int = 1,
        warmup_steps: int = 1,
        decay_steps: Steps | None = None,
        micro_batch: int | None = None,
        compile: bool = False,
        initial_checkpoint: str | None = None,
        max_skipped_steps: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if decay_steps is not None:
            check_steps("decay_steps", decay_steps)
        if warmup_steps < 0 or (micro_batch is not None and micro_batch < 1):
            raise ValueError(
                f"warmup_steps ({warmup_steps}) must be at least 0, micro_batch ({micro_batch}) at least 1"
            )
        self.separator, self.make_optimizer, self.follower = separator, optimizer, None
        if ema_decay is not None:
            self.student, self.follower = separator, EMATeacher(ema_decay, ema_every)
            self.separator = copy.deepcopy(separator).requires_grad_(False).eval()
        self.warmup_steps, self.decay_steps = warmup_steps, decay_steps
        self.micro_batch, self.compiled, self.seed = micro_batch, compile, seed
        self.max_skipped_steps, self.signal = max_skipped_steps, {}
        self.initial_checkpoint = initial_checkpoint
        self.trained_steps, self.trained_seconds, self._clock = 0, 0.0, 0.0
        self._batch_before: int | None = None
        self._run_steps_before: int | None = None
        self.val_metrics: Metric | None = None
        self.test_metrics: Metric | None = None

    @abstractmethod
    def loss(self, batch: Batch, random: BatchRandomness) -> Tensor:
        """The scalar training loss of ``batch``, all random numbers but dropout's taken from ``random``."""

    @property
    def teacher(self) -> Any:
        """The EMA of the student, where one is kept: the separator."""
        return self.separator

    @property
    def trained(self) -> Any:
        """The separator that a loss is of: in training what the optimizer moves, else what separates."""
        return self.student if self.training and self.follower else self.separator

    def train(self, mode: bool = True) -> SeparationModule:
        """The EMA stays in evaluation mode: its dropout is off."""
        super().train(mode)
        if self.follower:
            self.teacher.eval()
        return self

    def configure_callbacks(self) -> list[Callback]:
        callbacks = [FiniteSteps(self.max_skipped_steps), MeasureMoMi()]
        return [*callbacks, self.follower] if self.follower else callbacks

    @property
    def steps_made(self) -> int:
        """Optimizer steps behind the weights, also where a checkpoint is only evaluated."""
        return max(self.global_step, self.trained_steps)

    def check_batch(self, data: SeparationData) -> None:
        """Raises UserError where the batches of ``data`` are too small for the method."""

    def check_earlier_stage(self) -> None:
        """Raises UserError where a fit from the beginning lacks what an earlier stage was to leave."""
        if self.initial_checkpoint is not None:
            shared_weights(self.separator, load_separator(self.initial_checkpoint), self.initial_checkpoint)

    def check_sources(self, data: SeparationData) -> None:
        """Raises UserError where the separator has not the outputs that the mixtures of ``data`` need."""
        sources, slots = getattr(data, "num_sources", None), self.separator.num_sources
        if sources is not None and (sources > slots or (sources != slots and data.signal()["kind"] == "image")):
            raise UserError(f"the mixtures have {sources} sources (data.num_sources), the network separates {slots}")

    def micro_batched(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``function`` evaluated on ``micro_batch`` examples at a time, see ``in_micro_batches``."""
        if self.micro_batch is None:
            return function
        return functools.partial(in_micro_batches, function, self.micro_batch)

    # -- training --

    def setup(self, stage: str) -> None:
        data = self.data
        self.check_sources(data)
        self.signal = data.signal()
        self.lay_out(self)  # before DDP makes its buckets of gradients in the parameters' layout
        self.val_metrics = data.test_metrics() if stage == "validate" else data.metrics()
        self.test_metrics = data.test_metrics() if stage == "test" else None

    def lay_out(self, module: nn.Module) -> None:
        """Channels-last memory for image networks on CUDA, as tensor cores read it; on CPUs it is slower."""
        if self.signal["kind"] == "image" and self.device.type == "cuda":
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def on_fit_start(self) -> None:
        self._clock = time.monotonic()
        shape = self.signal.get("shape") or [self.signal["sample_rate"] // 10]
        if self.initial_checkpoint is not None and not self.trained_steps:  # a resumed fit has its own
            begin_with((self.trained, self.separator), load_separator(self.initial_checkpoint), self.initial_checkpoint)
        self.separator.check(BatchRandomness(HELD_OUT_SEED, 0, self.device).normal((2, *shape)).to(self.dtype))
        if self.compiled:
            compile_networks(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout is the one thing that draws from the global generators.
        number = batches_done(self.trainer)
        self.random = BatchRandomness(self.seed, number, self.device, Ranks.current())
        torch.manual_seed(mix_seed(self.seed, number, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch, self.random)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.make_optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        except ValueError as error:
            raise UserError(f"model.optimizer: {error}") from error
        self._configured = optimizer_settings(optimizer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: int | float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """As Lightning's, and for fused optimizers, which it does not clip lest they unscale: in bf16 nothing is."""
        fused = any(group.get("fused") for group in optimizer.param_groups)
        if gradient_clip_val and fused and self.trainer.precision == "16-mixed":
            raise UserError("16-mixed cannot clip a fused optimizer: use bf16-mixed, or --model.optimizer.fused false")
        if fused and self.trainer.precision == "bf16-mixed" and gradient_clip_val and gradient_clip_val > 0:
            clip: Any = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
            clip([weight for group in optimizer.param_groups for weight in group["params"]], gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # -- evaluation --

    def separate(self, mixtures: Tensor, batch: int) -> Tensor:
        """Estimates ``[B,K,*S]`` of held-out batch ``batch``, from noise that does not depend on the run."""
        generator = torch.Generator(self.device).manual_seed(mix_seed(HELD_OUT_SEED, batch))
        return self.separator.separate(mixtures, generator)

    def estimates(self, batch: Batch, position: int) -> Tensor:
        """What the metrics are given ``[B,K,*S]`` for held-out batch ``position``."""
        return self.separate(batch["mixtures"], position)

    def outputs(self, mixtures: Tensor, batch_idx: int) -> Tensor:
        """All that is estimated of ``mixtures [B,*S]``, sums of held-out ones, ``[B,M,*S]``, for ``metrics.MoMi``."""
        return self.separate(mixtures, self._position(batch_idx))

    def mean_of_samples(self, mixtures: Tensor, first: Tensor, batch_idx: int, count: int) -> Tensor:
        """The mean ``[B,K,*S]`` of ``count`` samples of test batch ``batch_idx``, aligned; ``first`` is one of them."""
        position = self._position(batch_idx)

        def samples() -> Iterator[Tensor]:
            yield first.flatten(2)
            for number in range(1, count):
                generator = torch.Generator(self.device).manual_seed(mix_seed(HELD_OUT_SEED, position, number))
                yield self.separator.separate(mixtures, generator).flatten(2)

        return posterior(samples())[0].view_as(first)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        if "sources" in batch:
            return self._measure(self.val_metrics, batch, batch_idx)
        if len(batch["mixtures"]) < self.least_mixtures:
            rank_zero_warn(f"no val/loss: held-out batches have fewer than {self.least_mixtures} mixtures")
        elif self.strict_loading or not self.follower:  # an exported teacher has no student that had a loss
            random = BatchRandomness(HELD_OUT_SEED, self._position(batch_idx), self.device)
            self.log("val/loss", self.loss(batch, random), prog_bar=True, sync_dist=True)
        return None

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._measure(self.test_metrics, batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test", self.test_metrics)

    def _measure(self, metrics: Metric | None, batch: Batch, batch_idx: int) -> Tensor:
        assert metrics is not None
        estimates = self.estimates(batch, self._position(batch_idx))
        metrics.update(estimates, batch["sources"], batch["mixtures"])
        return estimates

    def _position(self, batch_idx: int) -> int:
        """The number, in the whole held-out set, of this rank's batch ``batch_idx``."""
        return batch_idx * self.trainer.world_size + self.global_rank

    def _log_metrics(self, stage: str, metrics: Metric | None) -> None:
        assert metrics is not None
        if metrics.update_called:
            self.log_dict({f"{stage}/{name}": value for name, value in metrics.compute().items()}, prog_bar=True)
            metrics.reset()

    # -- checkpoints --

    def on_train_start(self) -> None:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        restored = optimizer_settings(optimizer.optimizer)
        check_kind(restored, self._configured)
        check_optimizer(optimizer.optimizer, self.lr_schedulers())  # type: ignore[arg-type]
        if restored != self._configured:
            rank_zero_warn(
                f"The resumed run goes on with the optimizer settings of its checkpoint, {restored}, "
                f"NOT with those configured now, {self._configured}."
            )
        self.check_length()
        if self._batch_before not in (None, batch := self.whole_batch()):
            rank_zero_warn(
                f"The resumed run goes on with {batch} mixtures a batch (data.batch_size, times the processes), NOT "
                f"with the {self._batch_before} it began with."
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        written_by, mine = checkpoint[KEY]["method"], class_path(self)
        if written_by != mine:
            raise UserError(
                f"the checkpoint is of {written_by}, but this run trains {mine}. --ckpt_path continues or evaluates "
                "only the same method; a later stage takes over the earlier one by its own argument (mixit_checkpoint)"
            )
        check_fits(checkpoint, self.separator)
        self.strict_loading = "global_step" in checkpoint
        if not self.strict_loading:  # an exported separator, to evaluate
            return
        check_average(checkpoint["state_dict"], self.follower is not None)
        run, loops = checkpoint[KEY], self.trainer.fit_loop.state_dict()
        check_progress(checkpoint.get("loops"), {"fit_loop": loops})
        self.trained_steps, self.trained_seconds = checkpoint["global_step"], plain_number(run.get("seconds")) or 0.0
        self._batch_before, self._run_steps_before = plain_number(run.get("batch")), plain_number(run.get("run_steps"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        seconds = self.trained_seconds + time.monotonic() - self._clock
        run = {"seconds": seconds, "batch": self.whole_batch(), "run_steps": self.run_steps}
        checkpoint[KEY] = {**checkpoint_metadata(self), **run}

    def whole_batch(self) -> int:
        """Mixtures in a training batch of all processes."""
        return self.data.batch_size * self.trainer.world_size

    @property
    def data(self) -> SeparationData:
        """The trainer's DataModule."""
        data: SeparationData = undeclared(self.trainer).datamodule
        return data
