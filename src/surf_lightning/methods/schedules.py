"""How long the schedules of a training stage are: in steps, or as shares of the run."""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from surf_lightning.callbacks.beta_schedule import Steps, in_steps


class ScheduledModule(L.LightningModule):
    """A module whose learning rate warms up in ``warmup_steps`` and decays until ``decay_steps``."""

    warmup_steps: int
    decay_steps: Steps | None
    _run_steps_before: int | None

    @property
    def run_steps(self) -> int:
        """Optimizer steps of the whole run, of which schedules may be shares; -1 where it has no end."""
        steps = self.trainer.max_steps if self._trainer is not None else -1
        return steps if steps > 0 else self._run_steps_before or -1

    def in_steps(self, schedule: Steps) -> int:
        """A schedule's length in optimizer steps."""
        return in_steps(schedule, self.run_steps)

    @property
    def schedules(self) -> dict[str, Steps | None]:
        """The lengths of all schedules, by their arguments."""
        return {"decay_steps": self.decay_steps}

    def check_length(self) -> None:
        """Warn where a resumed run is longer or shorter than planned, and schedules are shares of it."""
        shares = [name for name, steps in self.schedules.items() if isinstance(steps, float)]
        if shares and self._run_steps_before not in (None, self.run_steps):
            rank_zero_warn(
                f"The resumed run ends at step {self.run_steps:,}, it was to end at {self._run_steps_before:,}: "
                f"{', '.join(shares)}, which are shares of the run, are longer or shorter from here on."
            )

    def learning_rate_factor(self, step: int) -> float:
        """What the learning rate is multiplied by at optimizer step ``step``, counted from 0."""
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        if self.decay_steps is None:
            return warmup
        return warmup * 0.5 * (1 + math.cos(math.pi * min(step / self.in_steps(self.decay_steps), 1.0)))
