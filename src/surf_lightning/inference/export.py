"""`surf export`: a trained separator as safetensors, a JSON config and a model card.

The card says what the separator is, how it was made, how well it does, and under which licence.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard_data import EvalResult, ModelCardData
from safetensors.torch import save

from surf_lightning.errors import UserError
from surf_lightning.files import new_folder, own_file, read_text, read_yaml
from surf_lightning.inference.checkpoint import PREFIX
from surf_lightning.inference.hub import CARD, CONFIG, METADATA, WEIGHTS
from surf_lightning.inference.separator import read_separator
from surf_lightning.metrics.tables import results_table

LIBRARY = "surf-lightning"
UNKNOWN = "unknown"  # the Hub's name of a licence that nobody has chosen
EXAMPLES = "examples"
AXES = "(channels, height, width)"
PRIVATE = ("logger", "default_root_dir", "callbacks", "plugins")  # of the trainer: no part of how weights came to be

TEMPLATE = """\
# {name}

Separates mixtures of {what} into {sources}, which sum to the mixture. Trained by `{method}` of surf-lightning
{version}; {parameters:,} parameters.

```python
from surf_lightning import load_separator

separator = load_separator("path/to/this/folder")  # or "user/name" on the Hugging Face Hub
estimates = separator.separate(mixtures)  # {shapes}
```

The same from the command line: `surf separate {example} --checkpoint path/to/this/folder --output separated/`, after
`pip install surf-lightning`. The weights are safetensors and the configuration is JSON: loading them runs no code.
{parts}
## Limits

It knows what it was trained on: other {kind} may be separated badly, without a word. {licence}
"""


def export(
    checkpoint: str | PathLike[str],
    output: str | PathLike[str],
    trust: bool = False,
    onnx: bool = False,
    licence: str = UNKNOWN,
    examples: bool = False,
) -> None:
    """Write the separator of ``checkpoint`` to the folder ``output``, complete or not at all.

    ``trust`` is as of ``load_separator``, ``licence`` as the Hub names it; with ``onnx`` the folder has its graphs as
    well, with ``examples`` the folder and its card show the pictures and sounds of the run's latest validation.

    Raises:
        UserError: there is no such checkpoint, or ``output`` is there already and not empty.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already: give the name of a new folder by --output")
    metadata, separator = read_separator(checkpoint, trust)
    weights = {PREFIX + key: value.clone().contiguous() for key, value in separator.state_dict().items()}
    config = {key: metadata.get(key) for key in METADATA}
    parameters = sum(parameter.numel() for parameter in separator.parameters())
    try:
        run = record_of(checkpoint, metadata["steps"])
        run = run if examples else replace(run, media=[])
        for path in run.media:
            own_file(path.parents[1], path)
        card = model_card(metadata, parameters, separator.num_sources, run, licence)
    except Exception as error:  # of any type: a stranger's run may say anything
        raise UserError(f"the run of {checkpoint} cannot be read: {type(error).__name__}: {error}") from error
    try:
        with new_folder(output) as folder:
            (folder / WEIGHTS).write_bytes(save(weights))  # save_file would make it readable for its owner alone
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            (folder / CARD).write_text(card, encoding="utf-8")
            copy_examples(run, folder)
            if onnx:
                from surf_lightning.inference.onnx import write_onnx

                write_onnx(separator.eval(), metadata["signal"], folder)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error}") from error


# -- the card --


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says of one of its checkpoints; all of it is empty where there is no run around it."""

    results: dict[str, Any]
    config: dict[str, Any]
    facts: dict[str, Any]
    media: list[Path]


def record_of(checkpoint: str | PathLike[str], steps: int | None) -> RunRecord:
    """Read the folder of the run that ``checkpoint``, of so many ``steps``, lies in. Test results are of it, or none.

    Raises:
        ValueError: a file in it is a link that leads out of it, to what the card must not show, or is damaged.
    """
    path = Path(checkpoint)
    folder = path.parent.parent
    if path.parent.name != "checkpoints":
        return RunRecord({}, {}, {}, [])
    results = json.loads(_own_text(folder, "metrics.json") or "{}")
    tested = isinstance(results, dict) and (Path(str(results.get("checkpoint"))).name, results.get("steps"))
    if tested != (path.name, steps):  # best.ckpt is another one after each fit
        results = {}
    media = sorted(folder.glob("media/step_*"))
    latest = media[-1].name.partition(".")[0].split("_")[1] if media else ""
    shown = [path for path in media if path.name.startswith(f"step_{latest}")]
    written = (_own_text(folder, name) for name in ("config.yaml", "hparams.yaml"))
    config, facts = (read_yaml(text) if text else {} for text in written)
    return RunRecord(results, config, facts, shown)


def model_card(
    metadata: dict[str, Any], parameters: int, num_sources: int, run: RunRecord, licence: str = UNKNOWN
) -> str:
    """The card of an exported separator of ``parameters`` weights; the media of its ``run`` are shown as examples."""
    signal, method = metadata["signal"], metadata["method"]
    is_audio = signal["kind"] == "audio"
    title = method.rpartition(".")[2]
    name = f"{title} separator"
    pipeline = "audio-to-audio" if is_audio else "image-to-image"
    head: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": pipeline, "license": licence}
    if run.results:
        head |= {"model_name": name, "eval_results": _evaluated(run.results, pipeline)}
    scale = "sums of K sources in [-1,1]"
    if "values" in signal:  # of its arrays, which surf separate maps by itself
        center, half = signal["values"]
        scale = f"{num_sources} * (values - {center}) / {half}"
    text = TEMPLATE.format(
        name=name,
        what=f"sounds at {signal['sample_rate']} Hz" if is_audio else f"images of shape {signal['shape']} {AXES}",
        sources=f"{num_sources} sources",
        method=method,
        version=metadata["version"],
        parameters=parameters,
        shapes="[B,T] -> [B,K,T]" if is_audio else f"[B,C,H,W], {scale} -> [B,K,C,H,W]",
        example="field/" if is_audio else "mixtures/",
        kind="sounds" if is_audio else "images",
        parts="".join((_making(run), _measured(run.results), _examples(run.media), _configuration(run.config))),
        licence="Nobody has said under which licence the weights may be used: `license` in the head of this file is to."
        if licence == UNKNOWN
        else f"The weights may be used under the licence {licence}.",
    )
    learning = ["unsupervised-learning"] if metadata.get("needs_sources") is False else []  # early ones do not say
    tags = ["source-separation", *learning, signal["kind"], title.lower(), "pytorch-lightning"]
    return f"---\n{ModelCardData(tags=tags, **head).to_yaml()}\n---\n\n{text}"


def _evaluated(results: dict[str, Any], pipeline: str) -> list[EvalResult]:
    """The results of `surf test` as the Hub's pages read them."""
    data = results["data"]
    measured = {key: round(value, 4) for key, value in results["metrics"].items() if value is not None}
    of = partial(EvalResult, pipeline, data.lower(), data, task_name="source separation")
    return [of(metric_type=key, metric_value=value) for key, value in measured.items()]


def copy_examples(run: RunRecord, folder: Path) -> None:
    """Copy the pictures and sounds of ``run`` into a folder for the card to show."""
    if run.media:
        (folder / EXAMPLES).mkdir()
    for path in run.media:
        shutil.copyfile(path, folder / EXAMPLES / path.name)


def _making(run: RunRecord) -> str:
    """What it was trained on and with."""
    facts = {f"data: {name.replace('_', ' ')}": value for name, value in run.facts.get("dataset", {}).items()}
    facts |= {**run.facts.get("provenance", {}), "seed": run.config.get("seed_everything")}
    facts |= {name: run.results.get(name) for name in ("steps", "seconds")}
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
    return "\n".join(["\n## How it was made\n", "| | |", "|---|---|", *rows, ""]) if rows else ""


def _measured(results: dict[str, Any]) -> str:
    """The table of `surf test`, with its protocol."""
    if not results:
        return ""
    table = results_table([results], [results["label"]])
    lines = [["", *(column.heading for column in table.columns)], ["---", *("---:" for _ in table.columns)]]
    lines += [[row.label, *(text for text, _ in row.cells)] for row in table.rows]
    genuine = "" if results.get("genuine") else "The files are not known to be those of a published data set. "
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"\n## Test\n\n{table.protocol} {genuine}\n\n{rows}\n" + "".join(f"\n{note}\n" for note in table.notes)


def _examples(media: list[Path]) -> str:
    links = [f"{'!' if path.suffix == '.png' else '- '}[{path.stem}]({EXAMPLES}/{path.name})" for path in media]
    return "\n".join(["\n## Held-out examples, as it separates them\n", *links, ""]) if links else ""


def _configuration(config: dict[str, Any]) -> str:
    """The resolved configuration, without what says how the run was watched."""
    if not config:
        return ""
    trainer = {name: value for name, value in (config.get("trainer") or {}).items() if name not in PRIVATE}
    text = yaml.safe_dump({**config, "trainer": trainer}, sort_keys=False, allow_unicode=True)
    return f"\n## Configuration\n\n`surf fit` with this file trains it again:\n\n```yaml\n{text}```\n"


def _own_text(folder: Path, name: str) -> str:
    """Empty where there is no such file."""
    path = folder / name
    return read_text(own_file(folder, path)) if path.exists() else ""
