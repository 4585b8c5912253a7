"""Lightning callbacks."""

from surf_lightning.callbacks.beta_schedule import BetaSchedule
from surf_lightning.callbacks.ema_teacher import EMATeacher

__all__ = ["BetaSchedule", "EMATeacher"]
