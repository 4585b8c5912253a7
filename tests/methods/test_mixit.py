"""MixIT's loss against every assignment of its outputs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from surf_lightning.errors import UserError
from surf_lightning.functional.losses import squared_error
from surf_lightning.functional.randomness import BatchRandomness, mix_seed
from surf_lightning.methods import MixIT, SemiSupervisedMixIT
from tests.tiny import adam, regression


def mixtures(count: int) -> Tensor:
    return 2 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1


def random() -> BatchRandomness:
    return BatchRandomness(0, 0, torch.device("cpu"))


@pytest.mark.parametrize("thresholded", [True, False])
@pytest.mark.parametrize("num_outputs", [2, 4])
def test_the_loss_is_the_least_over_all_ways_to_deal_the_outputs(num_outputs: int, thresholded: bool) -> None:
    options = {} if thresholded else {"error": squared_error}
    module = MixIT(regression(num_outputs), optimizer=adam, **options).double()
    m = mixtures(6)

    def error(found: Tensor, truth: Tensor) -> Tensor:
        energy = (found - truth).square().sum()
        return 10 * torch.log10(energy + 1e-3 * truth.square().sum() + 1e-8) if thresholded else energy

    losses = []
    for one, other in zip(m[::2], m[1::2], strict=True):
        outputs = module.separator.network((one + other).unsqueeze(0))[0]
        ways = []
        for deal in itertools.product([True, False], repeat=num_outputs):
            first = sum((out for out, mine in zip(outputs, deal, strict=True) if mine), torch.zeros_like(one))
            second = sum((out for out, mine in zip(outputs, deal, strict=True) if not mine), torch.zeros_like(one))
            ways.append((error(first, one) + error(second, other)) / 2)
        losses.append(min(ways, key=lambda way: way.item()))
    expected = torch.stack(losses).mean()
    expected.backward()
    wanted = [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    loss = module.loss({"mixtures": m}, random())
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    for parameter, gradient in zip(module.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-9)
    assert math.isfinite(loss.item())


def test_the_network_sees_sums_of_pairs_of_the_batch() -> None:
    module, seen = MixIT(regression(4), optimizer=adam).double(), []
    module.separator.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    m = mixtures(7)
    loss = module.loss({"mixtures": m}, random())
    (found,) = seen
    assert torch.equal(found, m[:6:2] + m[1:6:2])  # the seventh has no mate
    assert torch.equal(module.loss({"mixtures": m[:6]}, random()), loss)


def test_the_sources_of_a_batch_are_not_looked_at() -> None:
    module, m = MixIT(regression(4), optimizer=adam).double(), mixtures(4)
    garbage = torch.full((4, 2, 1, 8, 8), float("nan"))
    assert torch.equal(
        module.loss({"mixtures": m, "sources": garbage}, random()), module.loss({"mixtures": m}, random())
    )


def test_a_single_mixture_cannot_be_paired() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size to at least 2"):
        MixIT(regression(4), optimizer=adam).loss({"mixtures": mixtures(1)}, random())


def test_the_perfect_separation_of_a_pair_has_the_loss_of_its_threshold() -> None:
    module = MixIT(regression(2), optimizer=adam).double()
    m = mixtures(2)
    module.separator.network.forward = lambda _: m.unsqueeze(0)
    expected = [10 * math.log10(1e-3 * float(mixture.square().sum()) + 1e-8) for mixture in m]
    assert module.loss({"mixtures": m}, random()).item() == pytest.approx(sum(expected) / 2)


def least_over(deals: list[tuple[int, ...]], outputs: Tensor, references: Tensor) -> float:
    """The least mean error in dB of references from sums of outputs, output m going to reference deal[m]."""

    def total(deal: tuple[int, ...]) -> float:
        found = torch.zeros_like(references).index_add(0, torch.tensor(deal), outputs)
        errors = (found - references).flatten(1).square().sum(1) + 1e-3 * references.flatten(1).square().sum(1)
        return float((10 * torch.log10(errors + 1e-8)).mean())

    return min(map(total, deals))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_any_number_of_mixtures_is_added_up(count: int) -> None:
    module, m = MixIT(regression(5), num_mixtures=count, optimizer=adam).double(), mixtures(2 * count + 1)
    groups = m[: 2 * count].unflatten(0, (2, count))
    outputs = module.separator.network(groups.sum(1)).detach()
    deals = list(itertools.product(range(count), repeat=5))
    expected = [least_over(deals, *each) for each in zip(outputs, groups, strict=True)]
    assert module.loss({"mixtures": m}, random()).item() == pytest.approx(sum(expected) / 2, rel=1e-9)
    with pytest.raises(UserError, match=f"to at least {count}"):
        module.loss({"mixtures": m[: count - 1]}, random())


def test_sixteen_outputs_have_their_best_of_65536_sums() -> None:
    """The network gives parts of both mixtures in a known mingling."""
    module, m = MixIT(regression(16), optimizer=adam).double(), mixtures(2)
    shares = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    shares = torch.cat([shares[:8] / shares[:8].sum(0), shares[8:] / shares[8:].sum(0)])
    outputs = torch.cat([shares[:8] * m[0], shares[8:] * m[1]])[torch.randperm(16)]
    module.separator.network.forward = lambda _: outputs.unsqueeze(0)
    perfect = [10 * math.log10(1e-3 * float(mixture.square().sum()) + 1e-8) for mixture in m]
    assert module.loss({"mixtures": m}, random()).item() == pytest.approx(sum(perfect) / 2)


@pytest.mark.parametrize(("outputs", "deals"), [(3, [(0, 0, 1), (0, 1, 0)]), (4, None)])
def test_enhancement_keeps_the_first_output_for_the_speech(outputs: int, deals: list[tuple[int, ...]] | None) -> None:
    deals = deals or [deal for deal in itertools.product((0, 1), repeat=4) if deal[0] == 0 and 1 <= sum(deal) <= 2]
    options = {"assignments": "enhancement", "selection": "first"}
    module, m = MixIT(regression(outputs), optimizer=adam, **options).double(), mixtures(8)
    pairs = m.unflatten(0, (4, 2))
    estimates = module.separator.network(pairs.sum(1)).detach()
    expected = [least_over(deals, *each) for each in zip(estimates, pairs, strict=True)]
    assert module.loss({"mixtures": m}, random()).item() == pytest.approx(sum(expected) / 4, rel=1e-9)
    speech, noise = module.separator.separate(pairs.sum(1)).unbind(1)
    torch.testing.assert_close(speech, estimates[:, 0])
    torch.testing.assert_close(noise, estimates[:, 1:].sum(1))
    assert "allowed" not in module.state_dict()


def test_impossible_sums_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        MixIT(regression(4), num_mixtures=1, optimizer=adam)
    for changes in ({"num_mixtures": 3}, {"network": regression(2)}):
        with pytest.raises(ValueError, match="3 outputs or more"):
            MixIT(**{"network": regression(4), "optimizer": adam, "assignments": "enhancement", **changes})


# -- semi-supervised --


def drawn(count: int) -> tuple[list[float], list[float]]:
    """The numbers of batch 0 that decide which pairs are supervised, and which of them are single mixtures."""
    generator = torch.Generator().manual_seed(mix_seed(0, 0))
    first, second = (torch.rand(count, generator=generator).tolist() for _ in range(2))
    return first, second


def in_decibels(found: Tensor, floor: Tensor) -> Tensor:
    return 10 * torch.log10(found.square().sum() + floor + 1e-8)


def supervised_error(outputs: Tensor, sources: list[Tensor], mixture: Tensor) -> Tensor:
    """The least mean error over all orders of the sources, one of silence measured against the mixture."""
    truth = [*sources, *[torch.zeros_like(mixture)] * (len(outputs) - len(sources))]
    floors = [1e-3 * s.square().sum() if s.any() else 1e-2 * mixture.square().sum() for s in truth]
    orders = itertools.permutations(range(len(truth)))
    ways = [
        torch.stack([in_decibels(out - truth[j], floors[j]) for out, j in zip(outputs, order, strict=True)]).mean()
        for order in orders
    ]
    return min(ways, key=lambda way: way.item())


@pytest.mark.parametrize(("share", "zeroed"), [(0.0, 0.5), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("num_outputs", [4, 5])
def test_supervised_pairs_have_the_error_of_their_sources_and_the_others_mixits(
    num_outputs: int, share: float, zeroed: float
) -> None:
    options = {"supervised_share": share, "zeroed_share": zeroed}
    module = SemiSupervisedMixIT(regression(num_outputs), optimizer=adam, **options).double()
    sources = torch.randn(16, 2, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sources[5, 1] = 0  # a mixture of one source
    m = sources.sum(1)
    losses, kinds = [], set()
    for pair, (draw, second_draw) in enumerate(zip(*drawn(8), strict=True)):
        one, other = m[2 * pair], m[2 * pair + 1]
        supervised, alone = draw < share, draw < share and second_draw < zeroed
        kinds.add((supervised, alone))
        if not supervised:
            plain = MixIT(module.separator.network, optimizer=adam)
            losses.append(plain.loss({"mixtures": torch.stack([one, other])}, random()))
            continue
        truth = [*sources[2 * pair], *([] if alone else sources[2 * pair + 1])]
        mixture = one if alone else one + other
        losses.append(supervised_error(module.separator.network(mixture.unsqueeze(0))[0], truth, mixture))
    assert len(kinds) == (3 if share == 0.5 else 1)
    expected = torch.stack(losses).mean()
    expected.backward()
    wanted = [parameter.grad for parameter in module.parameters()]
    module.zero_grad()
    loss = module.loss({"mixtures": m, "sources": sources}, random())
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)
    for parameter, gradient in zip(module.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-8)


def test_the_sources_of_pairs_without_supervision_are_not_looked_at() -> None:
    module = SemiSupervisedMixIT(regression(4), optimizer=adam, supervised_share=0.5).double()
    m, garbage = mixtures(16), mixtures(32).view(16, 2, 1, 8, 8)
    losses = [module.loss({"mixtures": m, "sources": garbage}, random())]
    for pair, draw in enumerate(drawn(8)[0]):
        if draw >= 0.5:
            garbage[2 * pair : 2 * pair + 2] = float("nan")
    losses.append(module.loss({"mixtures": m, "sources": garbage}, random()))
    losses[1].backward()
    assert torch.equal(*losses)
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_supervised_groups_are_of_the_supervised_set_and_the_others_of_the_data() -> None:
    module = SemiSupervisedMixIT(regression(4), optimizer=adam, supervised_share=0.5, zeroed_share=0.0).double()
    own, other = mixtures(16), mixtures(48)[16:].view(16, 2, 1, 8, 8)
    supervised = torch.tensor(drawn(8)[0]) < 0.5
    rows = supervised.repeat_interleave(2)
    assert 0 < supervised.sum() < 8
    chosen = torch.where(rows[:, None, None, None], other.sum(1), own)
    sources = torch.where(rows[:, None, None, None, None], other, torch.nan)
    expected = module.loss({"mixtures": chosen, "sources": sources}, random())
    beside = {"supervised_mixtures": other.sum(1), "supervised_sources": other}
    torch.testing.assert_close(module.loss({"mixtures": own, **beside}, random()), expected)


def test_held_out_mixtures_without_truth_have_the_loss_of_mixit() -> None:
    module = SemiSupervisedMixIT(regression(4), optimizer=adam, supervised_share=0.5).double().eval()
    plain = MixIT(module.separator.network, optimizer=adam)
    batch = {"mixtures": mixtures(16)}
    assert torch.equal(module.loss(batch, random()), plain.loss(batch, random()))


def test_impossible_supervision_is_refused() -> None:
    with pytest.raises(ValueError, match="need 4 outputs"):
        SemiSupervisedMixIT(regression(3), optimizer=adam)
    with pytest.raises(ValueError, match="must lie in"):
        SemiSupervisedMixIT(regression(4), supervised_share=1.1, optimizer=adam)
    with pytest.raises(UserError, match="needs true sources"):
        SemiSupervisedMixIT(regression(4), optimizer=adam).loss({"mixtures": mixtures(4)}, random())
