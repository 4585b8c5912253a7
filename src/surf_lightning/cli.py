"""The command `surf`. Everything heavy is imported when its command runs, so that help comes at once."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from surf_lightning import __version__
from surf_lightning.errors import UserError, did_you_mean

TRAINING = {
    "fit": "Train one stage, or go on with it: --ckpt_path last.",
    "validate": "Measure a run's best checkpoint on its validation mixtures.",
    "test": "Measure it on the test mixtures; writes metrics.json into the run's folder.",
}

HELP = """\
usage: surf COMMAND [ARGUMENTS]

Learn to separate sources from mixtures alone.

commands:
{commands}

examples:
  surf fit --config digits_mixit
  surf fit --config digits_surf_rm          the stage after it
  surf test --config digits_surf_rm
  surf report runs/digits_mixit runs/digits_surf_rm --output report
  surf separate meeting.wav field/ --checkpoint runs/NAME/checkpoints/best.ckpt --output separated

A configuration is a file, or a name that `surf configs` lists. A run lies in runs/<name of its configuration>:
checkpoints/{{last,best}}.ckpt, config.yaml, metrics.csv, media/. `surf COMMAND --help` lists the arguments of a
command, `surf fit --model.help SURF` those of a method, `surf fit --data.help MNIST` those of a data set.
"""


def report(*runs: str, output: str = "report") -> None:
    """Compare tested runs, as a page and as Markdown.

    Args:
        *runs: A run's folder, e.g. runs/digits_mixit, or a folder of runs.
        output: Folder for report.html, report.md and its pictures.
    """
    from surf_lightning.reporting.report import write_report

    if not runs:
        raise UserError("name the folders of the runs to compare, e.g. runs/digits_mixit")
    write_report([Path(run) for run in runs], Path(output))


def separate(
    *inputs: str,
    checkpoint: str,
    output: str,
    channels: Literal["each", "mix", "first"] = "each",
    num_samples: int = 1,
    num_steps: int | None = None,
    format: Literal["same", "wav", "flac"] = "same",
    samples: Literal["same", "int16", "int24", "float32"] = "same",
    names: str = "{stem}_source{source}",
    events: str = "",
    device: str = "auto",
    batch: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    compile: bool = False,
    workers: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    trust: bool = False,
) -> int:
    """Separate recordings of any length (or PNG images and arrays); one file a source, which sum to the input.

    A long file is separated in windows of 10 s whose sources are matched where they overlap, for 2 s: two sources that
    are both silent there may change places. What lies above half the checkpoint's sample rate is shared equally.

    The output folder gets manifest.csv, manifest.json, summary.json, journal.jsonl and, of sounds,
    manifest.raven.txt (for Raven). The same command on other machines that see the folder, or in the tasks of a SLURM
    job, shares the work.

    Args:
        *inputs: A file, a folder (its tree is mirrored) or a glob.
        checkpoint: A run's checkpoint, a folder of surf export, or user/name[@revision] on the Hugging Face Hub.
        output: Folder for the sources.
        channels: Of a file of several: separate each, their mean, or the first.
        num_samples: Write the mean of so many posterior samples of a flow, and its uncertainty over time.
        num_steps: Euler steps of a flow, instead of the checkpoint's.
        format: Of the files written.
        samples: Of the files written.
        names: Of the files written, without the suffix.
        events: Write when each source is active, and in which band: raven, audacity, csv, parquet, commas between them.
        device: One of auto, cpu, mps, cuda:N; or several with commas between them, a worker for each.
        batch: Windows of 10 s that go through the network at once; by default as many as the device's memory holds.
        precision: Of the network.
        compile: Compile the network first.
        workers: Processes on this machine that share the files.
        overwrite: Replace outputs that are there already.
        resume: Pass over what an earlier run has done with the same checkpoint and settings.
        trust: Import classes from outside this package, if the checkpoint needs any.
    """
    given = locals()
    from surf_lightning.inference.separate import separate_inputs

    if not inputs:
        raise UserError("name the files or folders to separate")
    _allow_own_modules(trust)
    options = {name: value for name, value in given.items() if name not in ("inputs", "checkpoint", "output")}
    return separate_inputs(inputs, checkpoint, output, **options)


def app(
    *, checkpoint: str, device: str = "auto", port: int = 7860, max_minutes: float = 10, trust: bool = False
) -> None:
    """Serve a local page that separates what is dropped on it, to listen and to look (needs the extra `app`).

    Args:
        checkpoint: As of surf separate; visitors of the page cannot choose another.
        device: One of auto, cpu, mps, cuda:N.
        port: Of 127.0.0.1.
        max_minutes: The longest recording that the page accepts.
        trust: Import classes from outside this package, if the checkpoint needs any.
    """
    try:
        from surf_lightning.inference.app import launch, open_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError("the page needs Gradio: pip install 'surf-lightning[app]'") from error
    _allow_own_modules(trust)
    launch(open_page(checkpoint, device, max_minutes, trust), port)


def export(
    *,
    checkpoint: str,
    output: str,
    license: str = "unknown",
    examples: bool = False,
    onnx: bool = False,
    push: str | None = None,
    trust: bool = False,
) -> None:
    """Write a trained separator in the Hugging Face layout: safetensors, a JSON config, a model card.

    Args:
        checkpoint: A run's checkpoint.
        output: A new folder.
        license: Of the weights, as the Hub names it, e.g. cc-by-4.0; it stands in the model card.
        examples: Show the run's latest pictures or sounds in the card. They are of your data.
        push: Upload the folder to user/name on the Hugging Face Hub, as the account of `hf auth login`.
        onnx: Write ONNX graphs as well, and separate.py, which runs them by numpy and onnxruntime.
        trust: Import classes from outside this package, if the checkpoint needs any.
    """
    from surf_lightning.inference.export import CARD, CONFIG, WEIGHTS
    from surf_lightning.inference.export import export as write
    from surf_lightning.inference.hub import check_name
    from surf_lightning.inference.hub import push as upload

    if push is not None:
        check_name(push)
    _allow_own_modules(trust)
    write(checkpoint, output, trust, onnx, license, examples)
    print(f"written to {output}: {WEIGHTS}, {CONFIG} and {CARD}, the model card")
    if push is not None:
        print(f"uploaded: {upload(output, push)}; --checkpoint hf://{push} takes it from there")
    if onnx:
        print(f"{output}/separate.py runs the ONNX graphs beside it: python {output}/separate.py MIXTURE")


def shard(*roots: str, output: str, sample_rate: int = 16000, validation_share: float = 0.1) -> None:
    """Pack a folder of recordings into chunks for --data Shards, on a disk or in S3's storage.

    The storage's address and keys are those of every AWS program: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY or a profile.

    Args:
        *roots: The folder; bad files are named and left out.
        output: A new folder, or s3://BUCKET/FOLDER.
        sample_rate: In Hz, that the recordings are resampled to.
        validation_share: Of the recordings, held out to validate on.
    """
    from surf_lightning.data.shard_writer import write_shards

    if len(roots) != 1:
        raise UserError("name one folder of recordings")
    print(write_shards(Path(roots[0]).expanduser(), output, sample_rate, validation_share))


def configs(*names: str) -> None:
    """List the shipped configurations, or print them.

    Args:
        *names: One to print; without any, all are listed.
    """
    from surf_lightning.engine.configs import shipped_config, summaries

    lines = [shipped_config(name).read_text(encoding="utf-8").rstrip() for name in names]
    lines = lines or [f"{name:32} {summary}" for name, summary in summaries().items()]
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # `surf configs | head` has read enough; what is left must not be flushed at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def info() -> None:
    """Print what a bug report needs: versions, devices, extras."""
    from surf_lightning.provenance import environment

    print("\n".join(environment()))


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what a library may say without the name of the file

COMMANDS: dict[str, Callable[..., int | None]] = {
    function.__name__: function for function in (report, separate, app, export, shard, configs, info)
}


def help_text() -> str:
    """What `surf --help` prints."""
    first_lines = {name: (function.__doc__ or "").partition("\n")[0] for name, function in COMMANDS.items()}
    return HELP.format(commands="\n".join(f"  {name:10} {line}" for name, line in (TRAINING | first_lines).items()))


def printable(text: str) -> str:
    """``text`` with escapes in place of what would steer a terminal; a file's name may hold anything."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1] for character in text
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line ``args`` (the process's own by default); returns the exit status.

    Callable from Python as well: ``main(["fit", "--config", "digits_mixit"])``.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    try:
        return _run(*args)
    except UserError as error:
        said = str(error)
    except OSError as error:
        if error.filename is None and error.errno not in DISK:  # no file of the user's
            raise
        said = f"{error.filename or 'writing'}: {error.strerror}"
    with suppress(OSError):  # stderr may lie on the disk that is full
        print(f"surf {printable(args[0])}: {printable(said)}", file=sys.stderr, flush=True)
    return 2


def _run(command: str, *args: str) -> int:
    if command in TRAINING:
        from surf_lightning.engine.lightning_cli import run_lightning

        run_lightning(command, *args)
        return 0
    if command not in COMMANDS:
        near = did_you_mean(command, [*TRAINING, *COMMANDS])
        raise UserError(f"there is no command {command!r}{near or ';'} `surf --help` lists them")
    from surf_lightning.engine.arguments import call

    return call(COMMANDS[command], args) or 0


def _allow_own_modules(trust: bool) -> None:
    """A trusted checkpoint may name classes in the folder where surf runs; all our imports are done."""
    if trust:
        sys.path.append(os.getcwd())


def entry_point() -> Any:
    """The console script. Its module path has no current folder: a stranger's files in it must not be imported."""
    # Threads that spin while they wait slow two trainings on the same cores down a hundredfold; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Tensors of 2 MB and more in huge pages: the kernel zeroes a window's buffers anew, which took 40% of separating.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"  # not where it is raised
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before there was anything to save
        sys.exit(130)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # a full disk: Python would end with 120 in place of our status
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
