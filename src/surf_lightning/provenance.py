"""The machine and the version of this code that a run was made with, and what is installed beside it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import defaultdict
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from surf_lightning import __version__


def hardware(device: torch.device) -> str:
    """Name of ``device``, with the number of threads if it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def processor(information: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model; its architecture where the system does not give the model, as on ARM."""
    with suppress(OSError):
        for line in information.read_text().splitlines():
            if line.startswith("model name") and (model := line.partition(":")[2].strip()):
                return model
    return f"{platform.processor() or platform.machine()} CPU"


def commit() -> str | None:
    """The commit of this package's checkout, with a mark if files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    if _git("ls-files", "--error-unmatch", Path(__file__).name, cwd=here) is None:  # installed inside another checkout
        return None
    found = _git("rev-parse", "HEAD", cwd=here)
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", cwd=here)
    return f"{found} with changes" if found and changed else found


def provenance(device: torch.device) -> dict[str, str | None]:
    """Version and commit of this code, the hardware of ``device``, and the versions that the numbers hang on."""
    return {
        "version": __version__,
        "commit": commit(),
        "hardware": hardware(device),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": version("lightning"),
    }


def environment() -> list[str]:
    """What a bug report needs, line by line: this package, Python, devices, dependencies and extras."""
    written = f" (commit {commit()})" if commit() else ""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return [
        f"surf-lightning {__version__}{written}",
        f"Python {platform.python_version()}, {platform.platform()}",
        *devices(),
        f"PyTorch built with {cuda}",
        *installed(),
    ]


def devices() -> list[str]:
    """A line for the CPU and one for each CUDA device."""
    gpus = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    named = [f"cuda:{index}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for index, gpu in enumerate(gpus)]
    return [f"cpu: {processor()}, {os.cpu_count()} cores", *(named or ["no CUDA device is to be used"])]


def installed() -> list[str]:
    """The versions of what this package needs, then a line for each extra: its versions, or what is missing."""
    extras = [extra for extra in metadata("surf-lightning").get_all("Provides-Extra", []) if extra != "dev"]
    groups = defaultdict(list)
    for requirement in map(Requirement, requires("surf-lightning") or []):
        marker = requirement.marker
        for extra in ["", *extras]:
            if (marker is None and not extra) or (marker and extra and marker.evaluate({"extra": extra})):
                groups[extra].append(_installed(requirement.name))
    return [", ".join(groups[""]), *(f"extra {extra}: {', '.join(groups[extra])}" for extra in extras)]


def _installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} is missing"


def _git(*command: str, cwd: Path) -> str | None:
    try:
        done = subprocess.run(["git", *command], cwd=cwd, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
