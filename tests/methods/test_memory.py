"""The peak of memory of a step follows the micro-batch, not the batch that is remixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from counting import LiveBytes
from jsonargparse import ArgumentParser
from torch import Tensor

from surf_lightning.functional.losses import Objective, Reduction, log_energy, mean_square
from surf_lightning.functional.randomness import BatchRandomness
from surf_lightning.inference.separator import RegressionSeparator, compile_networks
from surf_lightning.methods import SURF
from surf_lightning.networks import GlobalRMSNoise, RegressionNetwork, ScoreNetwork, VelocityNetwork
from tests.test_configs import ROOT
from tests.tiny import adam, regression, velocity


def surf(objective: Any, beta: float) -> SURF:
    module = SURF(velocity(channels=16, blocks=2), objective, mixit_checkpoint="", optimizer=adam)
    module._freeze(RegressionSeparator(regression(4, channels=16, blocks=2), 2))
    module.beta = beta
    return module


def peak(module: SURF, batch: int, micro_batch: int | None) -> int:
    module.micro_batch = micro_batch
    module.zero_grad()
    mixtures = torch.rand(batch, 1, 8, 8)
    with LiveBytes() as memory:
        module.loss({"mixtures": mixtures}, BatchRandomness(0, 0, torch.device("cpu"))).backward()
    return memory.peak


@pytest.mark.parametrize("objective", ["remixit", "self_remixing"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_peak_is_that_of_the_micro_batch(objective: Any, beta: float) -> None:
    module = surf(objective, beta)
    small, whole = peak(module, 4, None), peak(module, 32, None)
    assert whole > 6 * small
    weights = sum(parameter.nbytes for parameter in module.student.parameters())
    sources = 4 * 8 * 8 * 2  # bytes of one example
    peaks = [peak(module, batch, 4) for batch in (8, 16, 32)]
    # Gradients are added to those of earlier parts; of each example the batch keeps a few signals.
    assert small < peaks[0] < 1.05 * small + 2 * weights + 16 * 8 * sources
    for less, more, added in zip(peaks, peaks[1:], (8, 16), strict=False):
        assert more - less < 16 * added * sources


# -- on a GPU, at the sizes that users have --


def network(name: str, **options: Any) -> Any:
    parser = ArgumentParser()
    parser.add_subclass_arguments((RegressionNetwork, VelocityNetwork, ScoreNetwork), "network")
    given = [f"--network.init_args.{key}={value}" for key, value in options.items()]
    config = parser.parse_args([f"--network={ROOT / 'configs' / 'network' / name}.yaml", *given])
    return parser.instantiate(config).network


def on_gpu(family: str, objective: Objective, reduction: Reduction = mean_square, **options: Any) -> SURF:
    flow = network(f"{family}_velocity", **options)
    frozen_teacher = network("audio_mixit") if family == "libri2mix" else network("cifar_regression", num_outputs=4)
    noise = GlobalRMSNoise() if family == "libri2mix" else None
    module = SURF(flow, objective, reduction, noise=noise, mixit_checkpoint="", optimizer=adam)
    module._freeze(RegressionSeparator(frozen_teacher, flow.num_sources))
    module.beta = 0.5
    return module.cuda()


def gpu_peak(module: SURF, mixtures: Tensor, micro_batch: int) -> int:
    """Bytes at the peak of the second step, Adam's state included."""
    module.micro_batch = micro_batch
    optimizer = torch.optim.Adam(module.student.parameters(), fused=True)
    random = BatchRandomness(0, 0, torch.device("cuda"))
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = module.loss({"mixtures": mixtures}, random)
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    return torch.cuda.max_memory_allocated()


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("objective", ["remixit", "self_remixing"])
def test_cifar_of_256_mixtures_fits_into_24_gb(objective: Objective) -> None:
    module = on_gpu("cifar", objective)
    mixtures = 4 * torch.rand(256, 3, 32, 32, device="cuda") - 2
    small = gpu_peak(module, mixtures, 32)
    assert small < 24e9
    assert small < gpu_peak(module, mixtures, 64)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("objective", ["remixit", "self_remixing"])
def test_ten_seconds_of_audio_fit_into_24_gb_one_mixture_at_a_time(objective: Objective) -> None:
    module = on_gpu("libri2mix", objective, log_energy, activation_checkpointing=True)
    assert gpu_peak(module, 0.1 * torch.randn(4, 160_000, device="cuda"), 1) < 24e9


@pytest.mark.gpu
@needs_cuda
def test_images_lie_channels_last_in_a_fit_on_cuda(mixit: str, tmp_path: Path) -> None:
    """Weights, optimizer state and the loss of a step; a resumed run takes the layout again."""
    import lightning as L

    from surf_lightning.engine.fit import standard_callbacks
    from tests.tiny import digits

    def fit(steps: int, ckpt_path: str | None = None) -> SURF:
        module = SURF(velocity(), "self_remixing", mixit_checkpoint=mixit, optimizer=adam)
        trainer = L.Trainer(
            accelerator="cuda",
            devices=1,
            max_steps=steps,
            logger=False,
            default_root_dir=tmp_path,
            callbacks=standard_callbacks(tmp_path, "fit", False),
            use_distributed_sampler=False,
        )
        trainer.fit(module, digits(), ckpt_path=ckpt_path)
        return module

    for module in (fit(2), fit(4, str(tmp_path / "checkpoints" / "last.ckpt"))):
        for part in (module.student, module.separator, module.frozen_teacher):
            kernels = [p for p in part.parameters() if p.ndim == 4 and min(p.shape[1], p.shape[2]) > 1]
            assert kernels
            assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.slow
def test_the_compiler_on_cuda_computes_the_same() -> None:
    plain = surf("self_remixing", 0.5).cuda()
    compiled = surf("self_remixing", 0.5).cuda()
    compile_networks(compiled)
    mixtures = torch.rand(8, 1, 8, 8, device="cuda")
    losses = [m.loss({"mixtures": mixtures}, BatchRandomness(0, 0, torch.device("cuda"))) for m in (plain, compiled)]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
