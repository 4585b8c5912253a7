"""Makes a folder of src/surf_lightning/models from a tested run, with its card and examples.

python experiments/ship.py digits runs/digits_surf_rm
python experiments/ship.py phone runs/phone_one_step runs/phone_unheard

Each card in experiments/cards says which commands come before.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import yaml
from torchvision.transforms.functional import to_pil_image

from surf_lightning.data import Digits
from surf_lightning.inference.export import CARD, WEIGHTS, export
from surf_lightning.metrics.images import to_unit_range

MODELS = Path(__file__).parents[1] / "src" / "surf_lightning" / "models"


def digits(folder: Path) -> None:
    """Mixtures of test images."""
    data = Digits(num_test=6, batch_size=6)
    data.setup("test")
    for number, mixture in enumerate(next(iter(data.test_dataloader()))["mixtures"]):
        to_pil_image(to_unit_range(mixture / 2)).save(folder / f"mixture{number + 1}.png")


def phone(folder: Path) -> None:
    """Test mixtures, the last one of a voice and a track that were not trained on."""
    for number, part in enumerate(("test", "test", "unheard/test")):
        shutil.copy(Path("data/phone", part, "mix", f"{number:04d}.flac"), folder / f"mixture{number + 1}.flac")


EXAMPLES = {"digits": digits, "phone": phone}


def main(name: str, *runs: str) -> None:
    """Replace the shipped folder ``name`` by the best checkpoint of the first of ``runs``, its card and examples."""
    run, made = Path(runs[0]), MODELS / f".{name}"  # whole before it takes the place of the old one
    shutil.rmtree(made, ignore_errors=True)
    export(run / "checkpoints" / "best.ckpt", made)
    tested = [json.loads(Path(run, "metrics.json").read_text()) for run in runs]
    steps = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"]
    card = (Path(__file__).parent / "cards" / f"{name}.md").read_text(encoding="utf-8")
    facts = {"run": tested[0], "unheard": tested[-1], "steps": steps, "size": (made / WEIGHTS).stat().st_size}
    (made / CARD).write_text(card.format(**facts), encoding="utf-8")
    (made / "examples").mkdir()
    EXAMPLES[name](made / "examples")
    shutil.rmtree(MODELS / name, ignore_errors=True)
    made.rename(MODELS / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
