"""The folder configs as they are shipped: two steps in under a minute and 4 GB."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.audio.trees import noise, write

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_two_steps_of_each_folder_config_fit_a_laptop() -> None:
    for number, (suffix, rate) in enumerate([("wav", 16000), ("flac", 44100), ("ogg", 48000), ("mp3", 22050)] * 2):
        write(Path(f"recordings/{number}.{suffix}"), noise(6.0, number, rate, 1 + number % 2), rate)
    for method in ("mixit", "surf_rm", "surf_sr", "remixit", "self_remixing"):
        config = ROOT / "configs" / f"folder_{method}.yaml"
        args = ["fit", "--config", str(config), "--data.root", "recordings", "--trainer.max_steps", "2"]
        args += ["--trainer.logger", "false", "--trainer.accelerator", "cpu"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "surf_lightning", *args], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of one core that does nothing else; the wall clock of a busy machine would measure the others.
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert seconds < 60, method
        assert after.ru_maxrss < 4e6, method  # kB of the largest process; the two workers have little of their own
