"""Results of `surf validate` and `surf test`: what they print, and what a test leaves in the run's folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from surf_lightning.data.base import undeclared
from surf_lightning.files import make_writable, read_yaml, replacing
from surf_lightning.metrics.images import ImageMetrics
from surf_lightning.metrics.tables import BESIDE, Results, results_table
from surf_lightning.provenance import provenance

EXAMPLES = {"image": 8, "audio": 3}  # test mixtures whose estimates are kept for reports


def logged_metrics(trainer: L.Trainer, stage: str) -> dict[str, float | None]:
    """The metrics that ``stage``, val or test, has logged, by their names without the prefix."""
    logged = trainer.callback_metrics.items()
    return finite({name.removeprefix(f"{stage}/"): value for name, value in logged if name.startswith(f"{stage}/")})


def finite(values: dict[str, Tensor]) -> dict[str, float | None]:
    """``values`` as JSON can hold them: None for NaN and infinity."""
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def average_metrics(test_metrics: Metric) -> Metric:
    """A fresh copy of ``test_metrics`` to measure m/K, the mean of the sources.

    The copy keeps a reference set that is measured already. It has no FID against the sources of the test, which would
    measure them all a second time.
    """
    copy = test_metrics.clone()
    copy.reset()
    if isinstance(copy, ImageMetrics) and "fid" in copy.columns:
        del copy.columns["fid"]
    return copy


def results_name(data: Any) -> str:
    """Name of the file, without .json, that a test on the DataModule ``data`` writes."""
    return data.evaluation.results_name if data.evaluation else "metrics"


def fitted_seed(folder: Path, otherwise: int) -> int:
    """The seed that the run in ``folder`` was trained from: a test may be given another one."""
    try:
        seed = read_yaml((folder / "config.yaml").read_text(encoding="utf-8")).get("seed_everything")
    except (OSError, ValueError):  # a damaged one must not cost the measurements
        seed = None
    return seed if isinstance(seed, int) else otherwise


class TestResults(L.Callback):
    """Writes what a test measured to ``metrics.json``, or the file its evaluation names, and some examples.

    Beside the values stand those of the mean of the sources, m/K, and the facts of the data that say which of the
    paper's tables the values compare with. A value that is no finite number is null.

    Args:
        folder: the run's.
        num_samples: where more than one, the mean of so many samples of a flow's posterior is measured as well.

    Raises:
        ValueError: there is not even one sample.
    """

    def __init__(self, folder: Path, num_samples: int = 1) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        self.folder, self.num_samples = folder, num_samples

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            make_writable(self.folder)  # an error now costs no measurement
        self.average: Metric | None = None
        self.mean: Metric | None = None
        self.examples: dict[str, list[Tensor]] = {"mixtures": [], "sources": [], "estimates": []}
        self.count = torch.zeros((), dtype=torch.long, device=pl_module.device)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        mixtures, sources = batch["mixtures"], batch["sources"]
        if self.average is None:  # not earlier: the metrics have measured their reference set by now
            self.average = average_metrics(pl_module.test_metrics)
            self.mean = average_metrics(pl_module.test_metrics) if self.num_samples > 1 else None
        self.average.update((mixtures.unsqueeze(1) / sources.shape[1]).expand_as(sources), sources, mixtures)
        if self.mean is not None:
            mean = pl_module.mean_of_samples(mixtures, outputs, batch_idx, self.num_samples)
            self.mean.update(mean, sources, mixtures)
        self.count += len(mixtures)
        missing = EXAMPLES[pl_module.signal["kind"]] - len(self.examples["mixtures"])
        for kept, signals in zip(self.examples.values(), (mixtures, sources, outputs), strict=True):
            kept.extend(signal.cpu().clone() for signal in signals[:missing])

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        assert self.average is not None
        average = finite(self.average.compute())  # by all processes together, as the next lines
        mean = {"num_samples": self.num_samples, "metrics": finite(self.mean.compute())} if self.mean else None
        count = int(trainer.strategy.reduce(self.count, reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        data = undeclared(trainer).datamodule
        with replacing(self.folder / "test_examples.pt") as file:
            torch.save({**self.examples, **pl_module.signal}, file)
        with replacing(self.folder / f"{results_name(data)}.json", "w") as file:  # last: it says that the test is done
            file.write(json.dumps(self._results(trainer, pl_module, data, average, mean, count), indent=2) + "\n")

    def _results(
        self, trainer: L.Trainer, module: Any, data: Any, average: Results, mean: Results | None, count: int
    ) -> Results:
        loader: Any = trainer.test_dataloaders
        complete = trainer.num_test_batches == [len(loader)]
        return {
            "metrics": logged_metrics(trainer, "test"),
            "average": average,
            **({"mean_of_samples": mean} if mean else {}),
            "protocol": data.protocol() if complete else f"Only the first {count:,} of: {data.protocol()}",
            "data": type(data).__name__,
            "genuine": complete and data.genuine(),
            "mixtures": count,
            "sources": getattr(data, "num_sources", None),
            "evaluation": type(data.evaluation).__name__ if data.evaluation else None,
            **module.signal,
            "method": type(module).__name__,
            "label": module.label,
            "needs_sources": module.needs_sources,
            "seed": fitted_seed(self.folder, module.seed),
            "steps": module.trained_steps,
            "seconds": module.trained_seconds,
            "checkpoint": str(trainer.ckpt_path),
            **provenance(module.device),
        }


class PrintedResult(L.Callback):
    """Prints the row of the paper's table instead of Lightning's list of numbers.

    After a test it reads the file that ``TestResults``, a callback before this one, has written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        trainer.validate_loop.verbose = trainer.test_loop.verbose = False

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.count += len(batch["mixtures"])

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        count = int(trainer.strategy.reduce(torch.tensor(self.count, device=pl_module.device), reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        data = type(undeclared(trainer).datamodule).__name__
        results = {
            "metrics": logged_metrics(trainer, "val"),
            "protocol": f"{data}: {count:,} held-out mixtures, those that training is validated on.",
            "label": pl_module.label,
            "data": data,
            "steps": pl_module.trained_steps,
            "seconds": pl_module.trained_seconds,
        }
        print(f"\n{results_text(results)}")

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            path = self.folder / f"{results_name(undeclared(trainer).datamodule)}.json"
            print(f"\n{results_text(json.loads(path.read_text()))}\nwritten to {path}")


def results_text(results: Results) -> str:
    """One run's results in plain text: protocol, table with the papers' columns, order and digits, and notes."""
    table = results_table([results], [results["label"]])
    rows = ([row.label, *(text for text, _ in row.cells), row.steps, row.minutes] for row in table.rows)
    columns = [column for column in zip(table.headings, *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    text = [table.protocol, ""]
    for label, *values in zip(*columns, strict=True):
        cells = (value.rjust(width) for value, width in zip(values, widths[1:], strict=True))
        text.append("  ".join([label.ljust(widths[0]), *cells]))
    beside = [(title, results["metrics"].get(key)) for key, title in BESIDE.items()]
    notes = [f"{title}: {value:.2f}" for title, value in beside if value is not None]
    return "\n".join([*text, "", *notes, *table.notes]).rstrip()
