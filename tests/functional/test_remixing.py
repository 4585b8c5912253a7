"""Axes: B batch, K sources, T samples. Run as a script, this file is one rank of ``test_two_ranks_...``."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from surf_lightning.functional.flow import expand_like, interpolate, prior_from_noise, project_zero_sum
from surf_lightning.functional.losses import pit_permutation, remixit, self_remixing
from surf_lightning.functional.permutation import order_without_mates, reorder
from surf_lightning.functional.randomness import BatchRandomness, Ranks, mix_seed
from surf_lightning.functional.remixing import remix, unremix

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sources(batch: int, count: int, *signal: int) -> Tensor:
    return torch.randn(batch, count, *signal, dtype=torch.float64, generator=generator(1))


# -- remix and unremix --


@pytest.mark.parametrize("signal", [(), (5,), (1, 4, 4)])
@pytest.mark.parametrize(("batch", "count"), [(1, 1), (1, 3), (4, 1), (5, 3)])
def test_remix_is_eq_14_and_15(batch: int, count: int, signal: tuple[int, ...]) -> None:
    """X~ = Pi X and M~ = (I kron 1^T) X~ with the matrices written out."""
    x = sources(batch, count, *signal)
    remixed = remix(x, generator())
    assert sorted(remixed.order.tolist()) == list(range(batch * count))
    pi = torch.zeros(batch * count, batch * count, dtype=torch.float64)
    for i, j in enumerate(remixed.order.tolist()):
        pi[i, j] = 1
    shuffled = pi @ x.reshape(batch * count, -1)
    collapse = torch.kron(torch.eye(batch, dtype=torch.float64), torch.ones(1, count, dtype=torch.float64))
    assert torch.equal(remixed.sources, shuffled.view_as(x))
    assert torch.allclose(remixed.mixtures.reshape(batch, -1), collapse @ shuffled, rtol=0, atol=1e-12)
    assert torch.equal(unremix(remixed.sources, remixed.order), x)
    assert torch.equal(unremix(remixed.sources, remixed.order).view_as(shuffled), pi.T @ shuffled)


def test_remix_is_reproducible() -> None:
    x = sources(8, 2, 3)
    first, again, other = remix(x, generator(0)), remix(x, generator(0)), remix(x, generator(1))
    assert torch.equal(first.order, again.order)
    assert torch.equal(first.sources, again.sources)
    assert not torch.equal(first.order, other.order)
    g = generator(0)
    assert torch.equal(remix(x, g).order, first.order)
    assert not torch.equal(remix(x, g).order, first.order)
    torch.manual_seed(5)
    default = remix(x).order
    torch.manual_seed(5)
    assert torch.equal(remix(x).order, default)


@pytest.mark.parametrize(("batch", "count"), [(2, 2), (3, 2), (3, 3), (5, 3), (7, 4)])
def test_the_constrained_order_is_a_permutation_that_parts_all_mates(batch: int, count: int) -> None:
    for seed in range(30):
        order = order_without_mates(batch, count, generator(seed)).tolist()
        assert sorted(order) == list(range(batch * count))
        for new in range(batch):
            assert len({row // count for row in order[new * count : (new + 1) * count]}) == count
    assert not torch.equal(*(order_without_mates(batch, count, generator(seed)) for seed in (0, 2)))


def test_any_sources_of_different_mixtures_are_equally_likely_to_meet() -> None:
    """As under permutations of the columns drawn until no mates are left, here by rejection."""
    g, draws = generator(), 6000
    found: Counter[tuple[int, ...]] = Counter()
    for _ in range(draws):
        found.update(tuple(new) for new in order_without_mates(4, 2, g).view(4, 2).sort(1).values.tolist())
    pairs = [pair for pair in itertools.combinations(range(8), 2) if pair[0] // 2 != pair[1] // 2]
    assert set(found) == set(pairs)
    expected = 4 * draws / len(pairs)
    assert sum((found[pair] - expected) ** 2 / expected for pair in pairs) < 44.31 * 2  # pairs of a draw are correlated
    with pytest.raises(ValueError, match="cannot be kept apart"):
        order_without_mates(2, 3)


def test_ranks_share_a_constrained_order_or_draw_one_each() -> None:
    whole = order_without_mates(6, 2, BatchRandomness(1, 2, CPU).generator)
    generator_of_all = BatchRandomness(1, 2, CPU).generator
    each = [order_without_mates(3, 2, generator_of_all) for _ in range(2)]
    for rank in range(2):
        random = BatchRandomness(1, 2, CPU, Ranks(rank, 2))
        assert torch.equal(random.shuffled_order(3, 2, random.ranks, "constrained"), whole)
        random = BatchRandomness(1, 2, CPU, Ranks(rank, 2))
        assert torch.equal(random.shuffled_order(3, 2, Ranks(), "constrained"), each[rank])


def test_remix_is_uniform_and_mates_may_stay_together() -> None:
    g = generator()
    x = torch.zeros(2, 2, 1)
    draws = 4800
    counts = Counter(tuple(remix(x, g).order.tolist()) for _ in range(draws))
    assert set(counts) == set(itertools.permutations(range(4)))
    chi_square = sum((count - draws / 24) ** 2 / (draws / 24) for count in counts.values())
    assert chi_square < 44.18  # 99.5 % of 23 degrees of freedom
    together = sum(count for order, count in counts.items() if set(order[:2]) in ({0, 1}, {2, 3}))
    assert together / draws == pytest.approx(1 / 3, abs=0.025)


def test_gradients_follow_the_rows() -> None:
    x = sources(3, 2, 4).requires_grad_()
    remixed = remix(x, generator())
    weights = sources(3, 2, 4).flip(0)
    (remixed.sources * weights).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, unremix(weights, remixed.order))


# -- randomness of a batch --


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_draw_their_rows_of_one_batch(world_size: int) -> None:
    local = 3
    whole = BatchRandomness(1, 2, CPU)
    expected = [
        whole.normal((local * world_size, 2, 5)),
        whole.uniform(local * world_size),
        whole.normal((local * world_size, 7), torch.float64),
        remix(sources(local * world_size, 2, 4), whole.generator).order,
        whole.uniform(local * world_size),
    ]
    assert [x.dtype for x in expected] == [torch.float32, torch.float32, torch.float64, torch.int64, torch.float32]
    for rank in range(world_size):
        random = BatchRandomness(1, 2, CPU, Ranks(rank, world_size))
        mine = slice(rank * local, (rank + 1) * local)
        assert torch.equal(random.normal((local, 2, 5)), expected[0][mine])
        assert torch.equal(random.uniform(local), expected[1][mine])
        assert torch.equal(random.normal((local, 7), torch.float64), expected[2][mine])
        assert torch.equal(remix(sources(local * world_size, 2, 4), random.generator).order, expected[3])
        assert torch.equal(random.uniform(local), expected[4][mine])


def test_each_rank_has_its_own_permutation_of_one_batch() -> None:
    """On one rank it is the shuffle over all ranks; the numbers after it are every rank's alike."""
    alone = BatchRandomness(1, 2, CPU)
    assert torch.equal(alone.remix_order(6, Ranks()), remix(sources(3, 2), BatchRandomness(1, 2, CPU).generator).order)
    drawn = generator(mix_seed(1, 2))
    expected = [torch.randperm(6, generator=drawn) for _ in range(3)]
    later = torch.rand(3, generator=drawn)
    for rank in range(3):
        random = BatchRandomness(1, 2, CPU, Ranks(rank, 3))
        assert torch.equal(random.remix_order(6, Ranks()), expected[rank])
        assert torch.equal(random.uniform(1), later[rank : rank + 1])
    assert not torch.equal(expected[0], expected[1])


def test_ranks_that_remix_as_one_draw_one_order_of_all_their_rows() -> None:
    expected = torch.randperm(18, generator=generator(mix_seed(1, 2)))
    for rank in range(3):
        random = BatchRandomness(1, 2, CPU, Ranks(rank, 3))
        assert torch.equal(random.remix_order(6, random.ranks), expected)


def test_batches_and_seeds_draw_different_numbers() -> None:
    keys = [(seed, batch) for seed in range(8) for batch in range(8)]
    draws = [tuple(BatchRandomness(*key, CPU).normal((4,)).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(BatchRandomness(*key, CPU).normal((4,)).tolist()) for key in keys]


def test_numbers_are_of_the_distributions_named() -> None:
    random = BatchRandomness(0, 0, CPU)
    z, u = random.normal((40_000,), torch.float64), random.uniform(40_000).double()
    assert z.mean().item() == pytest.approx(0, abs=0.02)
    assert z.square().mean().item() == pytest.approx(1, abs=0.03)
    assert z.pow(4).mean().item() == pytest.approx(3, abs=0.2)
    assert (u.min() >= 0).item()
    assert (u.max() < 1).item()
    for power in (1, 2, 3):
        assert u.pow(power).mean().item() == pytest.approx(1 / (power + 1), abs=0.01)


def test_randomness_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    random = BatchRandomness(0, 0, CPU)
    random.normal((4, 2))
    random.uniform(4)
    remix(sources(4, 2, 1), random.generator)
    assert torch.equal(torch.get_rng_state(), before)


def test_mix_seed_is_splitmix64_and_stays_so() -> None:
    """The first number of the published generator from state 0, and one more key on top."""
    assert mix_seed(0) == 0xE220A8397B1DCDAF >> 1
    assert mix_seed(1, 2) == 6804074658870690613


def test_mix_seed_has_no_collisions_among_small_integers() -> None:
    keys: list[tuple[int, ...]] = [(a,) for a in range(100)]
    keys += itertools.product(range(100), repeat=2)
    keys += itertools.product(range(20), repeat=3)
    seeds = {mix_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


# -- ranks --


def test_one_process_gathers_nothing() -> None:
    rows = sources(4, 2, 3)
    assert Ranks.current() == Ranks(0, 1)
    assert Ranks().gather(rows) is rows
    assert Ranks().local(rows) is rows


def test_local_takes_contiguous_rows() -> None:
    rows = torch.arange(12).view(6, 2)
    assert [Ranks(rank, 3).local(rows)[:, 0].tolist() for rank in range(3)] == [[0, 2], [4, 6], [8, 10]]


B, K, T = 6, 2, 5  # the whole batch of all ranks


def surf_step(weight: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """A step of SURF on this rank's mixtures with a student of one matrix [T,T]: the SR-FM and RM-FM losses."""
    mixtures = ranks.local(torch.randn(B, T, dtype=torch.float64, generator=generator(11)))
    local = len(mixtures)
    random = BatchRandomness(5, 3, CPU, ranks)
    pseudo_sources = prior_from_noise(mixtures, random.normal((local, K, T), torch.float64))
    remixed = remix(ranks.gather(pseudo_sources), random.generator)
    rows, new = ranks.local(remixed.sources), ranks.local(remixed.mixtures)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return project_zero_sum(torch.tanh((x + expand_like(t, x) * new.unsqueeze(1)) @ weight))

    t = random.uniform(local).double()
    x0 = prior_from_noise(new, random.normal((local, K, T), torch.float64))
    order = pit_permutation(x0 + velocity(x0, 0 * t), rows)
    x1 = reorder(rows, order)
    residual = velocity(interpolate(x0, x1, t), t) - (x1 - x0)
    original = self_remixing(ranks.gather(residual), ranks.gather(order), remixed.order)
    return ranks.local(original).mean(), remixit(residual).mean()


def gradients(ranks: Ranks) -> list[Tensor]:
    """Each loss and its gradient."""
    results = []
    for index in range(2):
        weight = torch.randn(T, T, dtype=torch.float64, generator=generator(12)).requires_grad_()
        loss = surf_step(weight, ranks)[index]
        loss.backward()
        assert weight.grad is not None
        results += [loss.detach(), weight.grad]
    return results


def run_rank(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = (folder / "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    ranks = Ranks.current()
    assert ranks == Ranks(rank, world_size)
    rows = (torch.arange(4.0) + 10 * rank).view(2, 2).requires_grad_()
    gathered = ranks.gather(rows)
    weights = torch.arange(8.0).view(4, 2) * (rank + 1)
    (gathered * weights).sum().backward()
    assert rows.grad is not None
    torch.save([gathered.detach(), rows.grad, *gradients(ranks)], folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_compute_what_one_process_does(tmp_path: Path) -> None:
    """Two ranks with half the batch each: the mean over ranks of losses and gradients is that of the whole batch."""
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), "2", str(tmp_path)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    outcomes = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank, (gathered, gradient, *_) in enumerate(outcomes):
        assert gathered.tolist() == [[0, 1], [2, 3], [10, 11], [12, 13]]
        assert torch.equal(gradient, 3 * torch.arange(8.0).view(4, 2)[2 * rank : 2 * rank + 2])
    for of_whole, *of_ranks in zip(gradients(Ranks()), *(outcome[2:] for outcome in outcomes), strict=True):
        assert of_whole.abs().max() > 1e-3
        assert torch.allclose(torch.stack(of_ranks).mean(0), of_whole, rtol=1e-12, atol=1e-14)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
