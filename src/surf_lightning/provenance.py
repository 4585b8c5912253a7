"""The machine and the version of this code that a run was made with."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from surf_lightning import __version__


def hardware(device: torch.device) -> str:
    """Name of ``device``, with the number of threads if it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def processor(information: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model; its architecture where the system does not give the model, as on ARM."""
    try:
        lines = information.read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or f"{platform.processor() or platform.machine()} CPU"


def commit() -> str | None:
    """The commit of this package's checkout, with a mark if files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    if _git("ls-files", "--error-unmatch", Path(__file__).name, cwd=here) is None:  # installed inside another checkout
        return None
    found = _git("rev-parse", "HEAD", cwd=here)
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", cwd=here)
    return f"{found} with changes" if found and changed else found


def provenance(device: torch.device) -> dict[str, str | None]:
    """Version and commit of this code, and the hardware of ``device``."""
    return {"version": __version__, "commit": commit(), "hardware": hardware(device)}


def _git(*command: str, cwd: Path) -> str | None:
    try:
        done = subprocess.run(["git", *command], cwd=cwd, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
