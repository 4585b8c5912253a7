"""Further processes on this machine that share the work of a command."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch


class Crew:
    """Further processes with the same command, each of them a worker.

    Args:
        count: how many.
        devices: of them all, in turn; the first is this process's own.
        arguments: of the command, the device left out.
    """

    def __init__(self, count: int, devices: Sequence[str], arguments: Sequence[str]) -> None:
        threads = max(1, torch.get_num_threads() // (1 + count))
        if count:
            torch.set_num_threads(threads)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.said = [tempfile.TemporaryFile("w+") for _ in range(count)]  # noqa: SIM115  closed by end()
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "surf_lightning", "separate", *arguments, "--device", devices[i % len(devices)]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=environment,
            )
            for i, said in enumerate(self.said, 1)
        ]

    def end(self, at_once: bool) -> None:
        """Wait until they have ended, and say which have not done so well."""
        for process in self.processes:
            if at_once:
                process.terminate()
        for process, said in zip(self.processes, self.said, strict=True):
            if (status := process.wait()) not in (0, 1) and not at_once:
                said.seek(0)
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
                print(f"worker {process.pid} {how}; others have done its files. {said.read().strip()}", file=sys.stderr)
            said.close()


def command_line(inputs: Sequence[str], options: dict[str, Any]) -> list[str]:
    """The words of a command with these inputs and options."""
    words = [os.fspath(name) for name in inputs]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value not in (None, False):
            words += [f"--{name}", str(value)]
    return words
