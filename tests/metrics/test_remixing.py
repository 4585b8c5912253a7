"""The terms of Proposition C.2 give the losses of remixing, Eq. (63) and (64)."""

from __future__ import annotations

import pytest
import torch

from surf_lightning.functional.flow import mixture_consistent
from surf_lightning.functional.losses import pit_permutation, remixing_loss
from surf_lightning.functional.permutation import reorder
from surf_lightning.functional.randomness import ALONE
from surf_lightning.functional.remixing import remix
from surf_lightning.metrics import RemixingTerms


@pytest.mark.parametrize("num_sources", [2, 3])
def test_losses_are_made_of_them(num_sources: int) -> None:
    generator = torch.Generator().manual_seed(num_sources)
    metric, losses, squared_error = RemixingTerms(), torch.zeros(2, dtype=torch.float64), 0.0
    for _ in range(2):
        sources, *noise = torch.randn(3, 6, num_sources, 2, 5, dtype=torch.float64, generator=generator)
        teacher = mixture_consistent(sources.flip(1) + 0.3 * noise[0], sources.sum(1))
        remixed = remix(teacher, generator)
        student = remixed.sources.flip(1) + 0.3 * noise[1] + 0.1
        pit = pit_permutation(student, remixed.sources)
        residual = student - reorder(remixed.sources, pit)
        losses[0] += remixing_loss("remixit", residual, pit, remixed.order, ALONE).mean()
        losses[1] += remixing_loss("self_remixing", residual, pit, remixed.order, ALONE).mean() / num_sources
        squared_error += float((teacher - reorder(sources, pit_permutation(teacher, sources))).square().mean())
        metric.update(teacher, student, sources, remixed)
    student_error, inherited, coupled = metric.compute().values()
    torch.testing.assert_close(student_error + 1 - 2 * inherited, losses[0] / squared_error)
    torch.testing.assert_close(student_error + (num_sources - 1) * coupled, losses[1] / squared_error)


def test_a_student_that_finds_the_teachers_sources_inherits_their_errors() -> None:
    sources = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0))
    teacher = mixture_consistent(sources + 0.1 * sources.roll(1, 0), sources.sum(1))
    remixed = remix(teacher, torch.Generator().manual_seed(1))
    metric = RemixingTerms()
    metric.update(teacher, remixed.sources.flip(1), sources, remixed)
    terms = {name: float(value) for name, value in metric.compute().items()}
    assert terms == pytest.approx({"pseudo_supervised": 1, "inherited": 1, "coupled": -1})  # the two errors cancel


def test_sources_that_are_not_there_are_silent() -> None:
    sources = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0))
    teacher = mixture_consistent(torch.cat([sources, 0.1 * sources.roll(1, 0)], 1), sources.sum(1))
    remixed = remix(teacher, torch.Generator().manual_seed(1))
    terms = []
    for truth in (sources, torch.cat([sources, torch.zeros_like(sources)], 1)):
        metric = RemixingTerms()
        metric.update(teacher, 0.9 * remixed.sources, truth, remixed)
        terms.append(metric.compute())
    assert terms[0] == terms[1]
