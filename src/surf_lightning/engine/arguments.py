"""The arguments of a command, from the signature and the docstring of the function that runs it."""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser

from surf_lightning.errors import UserError, did_you_mean

# Beginnings of lines in jsonargparse's messages that tell of its internals: the types it tried, the whole of a value.
NOISE = (
    "Problem with given class_path",
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value type:",
    "Given value: NestedArg(",
    "Given value: Namespace(",
)


HABITS = {  # of other programs
    "lr": "--model.optimizer.lr",
    "learning_rate": "--model.optimizer.lr",
    "batch_size": "--data.batch_size",
    "max_steps": "--trainer.max_steps",
    "num_sources": "--data.num_sources",
    "seed": "--seed_everything",
}


class CommandParser(ArgumentParser):
    """A boolean is a flag without a value; an underscore may be typed as a hyphen."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("type") is bool:
            kwargs = {"action": "store_true", "help": kwargs["help"]}
        if args[0].startswith("--") and "_" in args[0]:
            args = (*args, args[0].replace("_", "-"))
        return super().add_argument(*args, **kwargs)


def call(function: Callable[..., Any], args: Sequence[str]) -> Any:
    """Call ``function`` with the command line ``args``; ``*names`` in its signature takes the words without a ``--``.

    Raises:
        UserError: the arguments are not those of ``function``.
    """
    documented = docstring_parser.parse(function.__doc__ or "")
    parser = CommandParser(prog=f"surf {function.__name__}", description=documented.description, exit_on_error=False)
    explained = {parameter.arg_name: parameter.description for parameter in documented.params}
    parameters = inspect.signature(function).parameters
    words = [name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_POSITIONAL]
    for name in words:
        word = name.removesuffix("s").upper()
        parser.add_argument(name, nargs="*", default=SUPPRESS, metavar=word, help=explained.get(f"*{name}"))
    parser.add_function_arguments(function, as_group=False)
    try:
        options = parser.parse_args(args).as_dict()
    except ArgumentError as error:
        raise UserError(readable(str(error)) + near_option(str(error), {"": parameters})) from error
    given = [word for name in words for word in options.pop(name, [])]
    empty = [f"--{name}" for name, value in options.items() if value == "" and parameters[name].default != ""]
    if empty or "" in given:
        raise UserError(f"{', '.join(empty) or 'a name'} is empty: an unset variable of the shell?")
    return function(*given, **options)


def readable(message: str) -> str:
    """A message of jsonargparse in one line: the option as it is typed, and what is wrong with its value."""
    key = r'Parser key "([\w.]+)":'
    option = ".".join(dict.fromkeys(re.findall(key, message)))
    lines = [line.strip().removeprefix("- ") for line in re.sub(key, "", message).splitlines()]
    said = "; ".join(line for line in lines if line and not line.startswith(NOISE))
    hint = " (give a configuration, e.g. --config digits_mixit)" if re.search(r"are required: \w+\.", said) else ""
    hint = " (--config comes before a configuration)" if re.search(r"nrecognized arg.*\.ya?ml", said) else hint
    return (f"--{option}: " if option else "") + said + hint


def near_option(message: str, known: Mapping[str, Iterable[str]]) -> str:
    """What was perhaps meant by the option or class that jsonargparse refuses in ``message``, and which help lists all.

    ``known``: names of arguments, by what they belong to: a class, a part of the configuration such as ``trainer``, or
    "" for those that stand alone.
    """
    if unknown := re.search(r"dot import path string: (\w+)", message):
        return did_you_mean(unknown[1], known)
    described = [path.rpartition(".")[2] for path in re.findall(r"given class_path '([\w.]+)'", message)]
    if unknown := re.search(r"nrecognized arguments: (--[\w.-]+)", message):
        option = unknown[1].lstrip("-").replace("-", "_")
    elif refused := re.search(r"Option '([\w.]+)' is not accepted", message):
        option = ".".join([*dict.fromkeys(re.findall(r'Parser key "([\w.]+)":', message)), refused[1]])
    else:
        return ""
    place, _, last = option.replace(".init_args", "").rpartition(".")
    names = known.get(described[-1] if described else place, ())
    guess = did_you_mean(last, names, f"--{place}." if place else "--")
    if last in HABITS and "config" in known[""]:
        guess = f"; did you mean {HABITS[last]}?"
    group = place.partition(".")[0]
    listed = f"--{group}.help {described[0] if described else 'CLASS'}" if group in ("data", "model") else "--help"
    return f"{guess or ';'} {listed} lists what there is"
