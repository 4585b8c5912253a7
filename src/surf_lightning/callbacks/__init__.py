"""Lightning callbacks."""

from surf_lightning.callbacks.beta_schedule import BetaSchedule
from surf_lightning.callbacks.ema_teacher import EMATeacher
from surf_lightning.callbacks.finite_steps import FiniteSteps

__all__ = ["BetaSchedule", "EMATeacher", "FiniteSteps"]
