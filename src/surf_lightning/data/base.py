"""What all DataModules share: batches that are a function of their number, so that any run can be resumed anywhere."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchmetrics import Metric

from surf_lightning.errors import UserError
from surf_lightning.functional.randomness import Ranks
from surf_lightning.metrics.evaluation import ImageEvaluation

Batches = Dataset[dict[str, Tensor]]


def batches_done(trainer: L.Trainer) -> int:
    """How many training batches this run has processed, resumed parts included.

    The number of the batch to come, or of the one in training. Lightning's ``processed`` counts right in a checkpoint
    taken at any moment; ``ready`` is one ahead after an exception.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return progress.processed


def undeclared(trainer: L.Trainer) -> Any:
    """``trainer``, for the attributes that Lightning sets without declaring them: datamodule, fast_dev_run, others."""
    return trainer


class TrainingBatches(Sampler[int]):
    """The numbers of the batches from where the run stands to the end of its epoch."""

    def __init__(self, trainer: L.Trainer, batches_per_epoch: int) -> None:
        self.trainer, self.batches_per_epoch = trainer, batches_per_epoch

    def __iter__(self) -> Iterator[int]:
        start = batches_done(self.trainer)
        return iter(range(start, (start // self.batches_per_epoch + 1) * self.batches_per_epoch))

    def __len__(self) -> int:
        return self.batches_per_epoch


class ResumableLoader(DataLoader[dict[str, Tensor]]):
    """Tells Lightning that it resumes in mid-epoch. Its whole state is the trainer's count of batches."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and SLURM signal all processes of a run: a worker that died of it would end it before its checkpoint."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # The first only: it is also how an interpreter that exits ends the workers it still has, and it tries twice. One
    # whose parent is gone ends by itself.
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))


class SeparationData(L.LightningDataModule, ABC):
    """Batches of ``mixtures [B,*S]`` and, where there is truth, ``sources [B,K,*S]``.

    Args:
        batch_size: mixtures in a training batch of one process.
        batches_per_epoch: training batches between two validations. The mixtures are drawn at random for ever, so
            an epoch is no pass over the data.
        num_workers: processes that prepare batches; 0 prepares them in the training process.
        seed: training batches are a function of (seed, batch number). The command line sets it to seed_everything.
    """

    monitor: str
    monitor_mode = "max"
    """``min`` where less of ``monitor`` is better."""
    evaluation: ImageEvaluation | None = None
    """What the final evaluation measures, where there is a choice."""

    def __init__(
        self, batch_size: int = 256, batches_per_epoch: int = 1000, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        if min(batch_size, batches_per_epoch) < 1:
            raise ValueError("batch_size and batches_per_epoch must be at least 1")
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, not {num_workers}")
        self.batch_size, self.batches_per_epoch, self.num_workers = batch_size, batches_per_epoch, num_workers
        self.seed = seed

    @abstractmethod
    def training_batches(self, ranks: Ranks) -> Batches:
        """Item i is this rank's training batch i, for any i."""

    @abstractmethod
    def validation_batches(self) -> Batches:
        """Item j is held-out batch j, looked at during fit."""

    @abstractmethod
    def test_batches(self) -> Batches:
        """Item j is batch j of the final evaluation."""

    @abstractmethod
    def metrics(self) -> Metric:
        """A fresh metric with ``update(estimates, sources, mixtures)`` whose ``compute`` gives a dict of scalars.

        It is computed during fit: its value named by ``monitor`` picks the best checkpoint.
        """

    def test_metrics(self) -> Metric:
        """As ``metrics``, for the final evaluation: what is too slow to be computed during fit is welcome."""
        return self.metrics()

    def protocol(self) -> str:
        """How the final evaluation is done, for the readers of its numbers: data, split, pairing, alignment."""
        return f"The test mixtures of {type(self).__name__}."

    def genuine(self) -> bool:
        """Whether the files are known to be those of the published set, not a stand-in of the same layout."""
        return False

    def amount(self) -> dict[str, float]:
        """How much there is to train on and to validate on, as far as it can be counted."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Of the data that a fit has loaded, for trackers and model cards: name, amount, and whether it is genuine."""
        try:
            genuine = self.genuine()
        except UserError:  # the part by which it is known is not here
            genuine = False
        return {"name": type(self).__name__, **self.amount(), "genuine": genuine}

    @abstractmethod
    def signal(self) -> dict[str, Any]:
        """What a checkpoint must say of the signals: plain values, for ``Separator.signal``."""

    def _ranks(self) -> Ranks:
        trainer = self.trainer
        return Ranks(trainer.global_rank, trainer.world_size) if trainer else Ranks()

    def _loader(self, batches: Batches, sampler: Any, workers: int) -> DataLoader[dict[str, Tensor]]:
        return ResumableLoader(
            batches,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            # They share the set's memory. Python 3.14 would start them anew and copy it to each.
            multiprocessing_context="fork" if workers else None,
            pin_memory=bool(self.trainer and self.trainer.strategy.root_device.type == "cuda"),
            persistent_workers=workers > 0,
            worker_init_fn=_outlive_signals,
        )

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        assert self.trainer is not None
        sampler = TrainingBatches(self.trainer, self.batches_per_epoch)
        return self._loader(self.training_batches(self._ranks()), sampler, self.num_workers)

    def held_out_batch_size(self, count: int) -> int:
        """Of ``count`` mixtures: a batch for each rank at least, for one without any would leave the others waiting."""
        return max(1, min(self.batch_size, count // self._ranks().world_size))

    def _held_out(self, batches: Batches) -> DataLoader[dict[str, Tensor]]:
        ranks, count = self._ranks(), len(batches)  # type: ignore[arg-type]
        if count < ranks.world_size:  # said by all ranks: one alone would leave the others waiting for it
            raise UserError(
                f"{count} batches of held-out mixtures cannot be shared out among {ranks.world_size} processes: have "
                "more mixtures (data.num_validation, data.num_test) or fewer processes (trainer.devices)"
            )
        # Every example is seen by exactly one rank: metrics are of the set, not of padding.
        return self._loader(batches, range(ranks.rank, count, ranks.world_size), 0)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._held_out(self.validation_batches())

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._held_out(self.test_batches())
