"""The image sets: splits, files on disk, and the batches that ranks and resumed runs get."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor

from surf_lightning.data import CIFAR10, MNIST, Digits
from surf_lightning.data.base import SeparationData, TrainingBatches
from surf_lightning.errors import UserError
from tests.tiny import attach, digits


def contents(images: Tensor) -> Counter[bytes]:
    return Counter(image.numpy().tobytes() for image in images)


def test_digits_are_split_once_and_for_all() -> None:
    from sklearn.datasets import load_digits

    splits = Digits().splits
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1347, 150, 300]
    assert splits.train.shape[1:] == (1, 8, 8)
    originals = torch.from_numpy((load_digits().images * 255 / 16).round().astype(np.uint8))
    parts = [contents(part) for part in (splits.train, splits.validation, splits.test)]
    assert parts[0] + parts[1] + parts[2] == contents(originals)
    assert not parts[0].keys() & parts[1].keys()
    assert not parts[0].keys() & parts[2].keys()
    assert not parts[1].keys() & parts[2].keys()
    assert torch.equal(Digits(seed=5).splits.test, splits.test)
    assert Digits().signal() == {"kind": "image", "shape": [1, 8, 8]}


def test_mnist_is_read_from_its_idx_files(image_sets: Path) -> None:
    data = MNIST(root=str(image_sets))
    data.prepare_data()
    raw = image_sets / "MNIST" / "raw"
    train, test = (
        torch.from_numpy(np.fromfile(raw / f"{part}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 1, 28, 28))
        for part in ("train", "t10k")
    )
    assert torch.equal(data.splits.train, train[:30])
    assert torch.equal(data.splits.validation, train[30:])
    assert torch.equal(data.splits.test, test)
    assert data.signal() == {"kind": "image", "shape": [1, 28, 28]}


def test_cifar_is_read_from_its_binary_records(image_sets: Path) -> None:
    data = CIFAR10(root=str(image_sets))
    data.prepare_data()
    folder = image_sets / "cifar-10-batches-bin"
    fourth = (folder / "data_batch_4.bin").read_bytes()
    record = fourth[2 * 3073 : 3 * 3073]  # the third of ten: number 32 of the training set
    image = data.splits.train[32]
    for channel, row, column in [(0, 0, 0), (0, 0, 31), (1, 7, 3), (2, 31, 31)]:
        assert image[channel, row, column] == record[1 + channel * 1024 + row * 32 + column]
    assert [len(part) for part in (data.splits.train, data.splits.validation, data.splits.test)] == [40, 10, 10]
    assert data.splits.validation[9].numpy().tobytes() == (folder / "data_batch_5.bin").read_bytes()[-3072:]
    assert data.splits.test[0].numpy().tobytes() == (folder / "test_batch.bin").read_bytes()[1:3073]
    assert data.signal() == {"kind": "image", "shape": [3, 32, 32]}


def test_a_damaged_cifar_file_is_named_with_its_md5(image_sets: Path) -> None:
    path = image_sets / "cifar-10-batches-bin" / "data_batch_3.bin"
    damaged = bytearray(path.read_bytes())
    damaged[5000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(
        UserError, match=rf"data_batch_3\.bin is damaged \(its md5 is not {CIFAR10.checksums[path.name]}"
    ):
        CIFAR10(root=str(image_sets)).prepare_data()


def test_cifar_is_downloaded_with_its_published_checksum(image_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, root: str, md5: str) -> None:
        assert url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
        assert md5 == "c32a1d4ab5d03f1284b67883e8d87530"
        (image_sets / CIFAR10.folder).rename(Path(root, CIFAR10.folder))

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", download)
    Path("elsewhere").mkdir()
    data = CIFAR10(root="elsewhere")
    data.prepare_data()
    assert len(data.splits.train) == 40


def unreachable(*args: Any, **kwargs: Any) -> None:
    raise URLError("no network")


@pytest.mark.parametrize(
    ("data", "folder"),
    [(CIFAR10(root="empty"), "empty/cifar-10-batches-bin"), (MNIST(root="empty"), "empty/MNIST/raw")],
)
def test_missing_data_without_a_network_says_what_to_do(
    data: SeparationData, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", unreachable)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", unreachable)
    with pytest.raises(UserError) as caught:
        data.prepare_data()
    for part in (folder, "cannot be downloaded", "--data.root FOLDER"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("processed", "numbers"), [(0, [0, 1, 2, 3, 4]), (7, [7, 8, 9]), (9, [9]), (10, [10, 11, 12, 13, 14])]
)
def test_training_goes_on_with_the_batch_after_the_last_processed(processed: int, numbers: list[int]) -> None:
    trainer: Any = attach(digits(), processed=processed).trainer
    sampler = TrainingBatches(trainer, 5)
    assert list(sampler) == numbers
    assert len(sampler) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_begins_where_the_run_stands(workers: int) -> None:
    data = attach(digits(batches_per_epoch=4, num_workers=workers, single_source_share=0.5), processed=6)
    loaded = list(data.train_dataloader())
    assert [len(batch["mixtures"]) for batch in loaded] == [4, 4]
    whole = data.training_batches(data._ranks())
    for number, batch in zip((6, 7), loaded, strict=True):
        assert torch.equal(batch["sources"], whole[number]["sources"])


@pytest.mark.parametrize("world_size", [2, 3, 5, 11])
def test_every_held_out_mixture_is_seen_by_one_rank_and_every_rank_sees_some(world_size: int) -> None:
    data = digits(batch_size=4, num_validation=11, num_test=12)
    for loader in (SeparationData.val_dataloader, SeparationData.test_dataloader):
        alone = torch.cat([batch["sources"] for batch in loader(attach(data))])
        shares = [[batch["sources"] for batch in loader(attach(data, rank, world_size))] for rank in range(world_size)]
        assert all(shares), "a rank without a batch makes the others wait for it for ever"
        seen = torch.cat([torch.cat(share) for share in shares])
        assert contents(seen) == contents(alone)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"batches_per_epoch": 0}, {"num_validation": 0}, {"num_test": 0}, {"single_source_share": 1.5}],
)
def test_impossible_sizes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Digits(**options)
