"""What remixing over all ranks costs: processes that exchange estimates, and residuals with gradients. Axes: B K T."""

from __future__ import annotations

import tempfile
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timing import wall_seconds

from surf_lightning.functional.losses import regrouped
from surf_lightning.functional.randomness import BatchRandomness, Ranks
from surf_lightning.functional.remixing import remix

SHAPE = (4, 4, 160_000)  # of a rank's estimates
ROUNDS = 7


def measure(world_size: int, device_type: str) -> tuple[float, float]:
    """Milliseconds, of rank 0, of ReMixIT's exchange and of what Self-Remixing adds to it."""
    results = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world_size, device_type, f"file://{folder}/meeting", results)
        mp.spawn(_rank, arguments, nprocs=world_size)  # type: ignore[no-untyped-call]
    return results.get()


def _rank(rank: int, world_size: int, device_type: str, meeting: str, results: Any) -> None:
    if device_type == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(1)
    backend = "nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=world_size)
    random = BatchRandomness(0, 0, device, Ranks.current())
    estimates = torch.randn(SHAPE, device=device)
    residual = torch.randn(SHAPE, device=device).requires_grad_()
    pit_permutation = torch.arange(SHAPE[1], device=device).expand(SHAPE[:2]).contiguous()
    order = remix(random.ranks.gather(estimates), random.generator).order

    def forth() -> None:
        whole = remix(random.ranks.gather(estimates), random.generator)
        random.ranks.local(whole.sources), random.ranks.local(whole.mixtures)

    def back() -> None:
        original = regrouped(random.ranks.gather(residual), random.ranks.gather(pit_permutation), order)
        random.ranks.local(original).square().mean().backward()

    def timed(function: Any) -> float:
        function()
        times = []
        for _ in range(ROUNDS):
            dist.barrier()
            times.append(wall_seconds(function, device))
        return 1e3 * median(times)

    times = timed(forth), timed(back)
    if rank == 0:
        results.put(times)
    dist.barrier()
    dist.destroy_process_group()
