"""Why an optional metric cannot be computed here, said so that the rest of a table can go on without it."""

from __future__ import annotations

import importlib

from torch import nn
from torchmetrics import Metric

INSTALL = "pip install surf-lightning[audio]"


def not_available(reason: str) -> str:
    """The words a table shows in place of a number."""
    return f"not available, because: {reason}"


def why_not_importable(*modules: str) -> str | None:
    """None where all ``modules`` import, else the words of ``not_available``."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a C extension built for another numpy fails with more than ImportError
            return not_available(f"{error} ({INSTALL})")
    return None


def unavailable_columns(metrics: nn.Module) -> dict[str, str]:
    """Of the metrics inside ``metrics`` that cannot be computed here, the reasons, by the name they have in it."""
    found = ((name, part) for name, part in metrics.named_modules() if isinstance(part, Metric))
    reasons = {name.rpartition(".")[2]: getattr(metric, "unavailable", None) for name, metric in found}
    return {name: reason for name, reason in reasons.items() if reason}
