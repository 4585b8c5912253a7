"""The command `surf`. Everything heavy is imported when its command runs, so that help comes at once."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from surf_lightning import __version__
from surf_lightning.errors import UserError

HELP = """\
usage: surf COMMAND [ARGUMENTS]

Learn to separate sources from mixtures alone.

commands:
  fit        train one stage:    surf fit --config configs/digits_mixit.yaml
             continue it:        surf fit --config configs/digits_mixit.yaml --ckpt_path last
             the stage after it: surf fit --config configs/digits_surf_rm.yaml
  validate   measure a run's best checkpoint on its validation mixtures
  test       measure it on the test mixtures; writes metrics.json into the run's folder
  predict    run the separator over the test mixtures, for callbacks of your own: it writes nothing
  report     compare tested runs: surf report runs/digits_mixit runs/digits_surf_rm --output report
  separate   separate recordings (or PNG images) of your own, files or whole folders:
             surf separate meeting.wav field/ --checkpoint runs/NAME/checkpoints/best.ckpt --output separated
  export     write a trained separator for others to use: surf export --checkpoint CKPT --output DIR

A run lies in runs/<name of its config>: checkpoints/{last,best}.ckpt, config.yaml, metrics.csv, media/.
`surf COMMAND --help` lists the arguments of a command; `surf fit --model.help surf_lightning.methods.SURF`
those of a method, `surf fit --data.help surf_lightning.data.MNIST` those of a data set.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line ``args`` (the process's own by default); returns the exit status.

    Callable from Python as well: ``main(["fit", "--config", "configs/digits_mixit.yaml"])``.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    command, *rest = args
    try:
        if command in ("fit", "validate", "test", "predict"):
            from surf_lightning.engine.lightning_cli import run_lightning

            run_lightning(args)
        elif command == "report":
            from surf_lightning.reporting import run_report

            run_report(rest)
        elif command == "separate":
            from surf_lightning.inference.separate import run_separate

            return run_separate(rest)
        elif command == "export":
            from surf_lightning.inference.export import run_export

            run_export(rest)
        else:
            raise UserError(f"there is no command {command!r}; `surf --help` lists them")
    except UserError as error:
        print(f"surf {command}: {_message(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:  # no file of the user's
            raise
        print(f"surf {command}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _message(error: UserError) -> str:
    """What it says; one raised in a process of a DataLoader's comes wrapped in that process's traceback."""
    return str(error).rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2].rstrip()


def entry_point() -> None:
    """The console script."""
    # Threads that spin while they wait slow two trainings on the same cores down a hundredfold; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"  # not where it is raised
    sys.path.append(os.getcwd())  # a config may name a network of the user's own, as under python -m
    sys.exit(main())
