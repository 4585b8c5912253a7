"""What this code may never do with what a stranger wrote, read off its syntax; and that no bad release is locked."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("src", "examples", "experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
NEVER = {  # calls
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "torch.hub.load"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "runpy.run_path", "runpy.run_module"),
}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}  # imports
IMPORTERS = {  # which import a module whose name is no constant: of a user's configuration, or checked before
    "benchmarks/run.py",
    "src/surf_lightning/engine/lightning_cli.py",
    "src/surf_lightning/engine/sizes.py",
    "src/surf_lightning/inference/checkpoint.py",
    "src/surf_lightning/metrics/speech.py",
}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """All calls with the dotted names of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    """The constant that a call gives by name; None if it gives none."""
    found = (each.value for each in call.keywords if each.arg == name)
    return next((value.value for value in found if isinstance(value, ast.Constant)), None)


def faults(source: str, place: str = "") -> Iterator[str]:
    """What a file does that it may not."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in PICKLES)
    for name, call in calls(tree):
        short = name.rpartition(".")[2]
        where = f"line {call.lineno}: {ast.unparse(call)[:80]}"
        if name in NEVER:
            yield where
        if name == "torch.load" and keyword(call, "weights_only") is not True:
            yield f"{where} without weights_only=True"
        if name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") is not False:
            yield f"{where} without allow_pickle=False"
        if short == "load_state_dict_from_url" or (short == "download_url_to_file" and len(call.args) < 3):
            yield f"{where} without a hash"
        if name.startswith("subprocess."):
            command = call.args[0] if call.args else None
            if keyword(call, "shell") or not isinstance(command, ast.List | ast.Tuple | ast.Name):
                yield f"{where} with a text for a shell"
        imports = short in ("import_module", "resolve_name") and not isinstance(call.args[0], ast.Constant)
        if imports and place not in IMPORTERS:
            yield f"{where} of a name that is not fixed"


@pytest.mark.parametrize("path", [path.relative_to(ROOT).as_posix() for path in SOURCES])
def test_nothing_of_a_stranger_is_run(path: str) -> None:
    assert list(faults((ROOT / path).read_text(encoding="utf-8"), path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "yaml.load(text, Loader=Loader)",
        "eval(text)",
        "subprocess.run('ls ' + name, shell=True)",
        "subprocess.run(f'ls {name}')",
        "torch.hub.download_url_to_file(url, path)",
        "load_state_dict_from_url(url)",
        "importlib.import_module(name)",
        "pkgutil.resolve_name(name)",
    ],
)
def test_it_would_be_found(source: str) -> None:
    assert list(faults(source))


# -- releases --


def locked() -> dict[str, str]:
    """The versions of all packages that an installation locks."""
    files = [*(ROOT / "lock").glob("*.txt"), *ROOT.glob("constraints.txt")]
    lines = (line for file in files for line in file.read_text().splitlines())
    return {match[1].lower(): match[2] for line in lines if (match := re.match(r"([\w.-]+)==([^\s;\\]+)", line))}


def bad_releases() -> set[tuple[str, str]]:
    """(package, version) of .ci/bad_releases.txt, where a version may be any: *."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / ".ci" / "bad_releases.txt").read_text().splitlines())
    return {(name, version) for name, _, version in (line.partition("==") for line in lines if line)}


@pytest.mark.parametrize("lock", sorted((ROOT / "lock").glob("*.txt")), ids=lambda path: path.name)
def test_every_locked_release_has_its_hashes(lock: Path) -> None:
    requirements = [part for part in re.split(r"\n(?=\S)", lock.read_text()) if part[0] not in "#-"]
    assert requirements
    assert [part.partition(" ")[0] for part in requirements if "--hash=sha256:" not in part] == []


def test_no_release_that_is_known_to_be_malicious_is_locked() -> None:
    bad, versions = bad_releases(), locked()
    assert ("lightning", "2.6.2") in bad
    assert len(versions) > 50
    assert [name for name, version in versions.items() if {(name, version), (name, "*")} & bad] == []


# -- the audit --

SKIPPED = {"name": "torch", "skip_reason": "not found on PyPI"}
VULNERABLE = {"name": "pip", "version": "23.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["23.3"]}]}


@pytest.mark.parametrize(
    ("tests", "answer", "status", "line"),
    [
        (0, {"name": "pip", "version": "26.0", "vulns": []}, 0, "asked of 1 of 1 releases: 0 vulnerabilities."),
        (0, VULNERABLE, 1, "pip 23.0 has PYSEC-1, mended in 23.3"),
        (0, SKIPPED, 0, "asked of 0 of 1 releases: 0 vulnerabilities; PyPI's data could not be asked of the other 1."),
        (0, "403 Client Error: Forbidden", 0, "could not be asked (403 Client Error: Forbidden)"),
        (1, "403 Client Error: Forbidden", 1, "could not be asked (403 Client Error: Forbidden)"),
    ],
)
def test_the_audit_says_what_it_could_not_ask(tests: int, answer: object, status: int, line: str) -> None:
    """``make audit`` with a pip-audit that gives ``answer`` and tests that end with the status ``tests``."""
    known = json.dumps({"dependencies": [answer]})
    reply = f"echo 'a traceback\n{answer}' >&2; exit 1" if isinstance(answer, str) else f"cat <<'END'\n{known}\nEND"
    Path("uvx").write_text(f"#!/bin/sh\n{reply}\n")
    Path("uvx").chmod(0o755)
    Path("pytest.py").write_text(f"raise SystemExit({tests})")
    places = {"PATH": f"{os.getcwd()}:{os.environ['PATH']}", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(ROOT / ".ci" / "audit")]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places})
    assert run.returncode == status, run.stderr
    locks = [lock.name for lock in sorted((ROOT / "lock").glob("*.txt"))]
    assert [text.partition(":")[0] for text in run.stdout.splitlines() if line in text] == [f"lock/{n}" for n in locks]
