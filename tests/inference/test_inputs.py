"""Which files a command names, and that none of their names leads out of the output folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from surf_lightning.inference.inputs import find_inputs, output_stems


@pytest.mark.parametrize("pattern", ["x/*/../../secret/*.wav", "*/../secret/*.wav", "secret/[a-z]/../*.wav"])
def test_a_pattern_leads_no_output_out_of_its_folder(pattern: str) -> None:
    for folder in ("x/a", "secret/b"):
        Path(folder).mkdir(parents=True)
    Path("secret/c.wav").touch()
    for file, name in find_inputs([pattern], (".wav",), Path("o")).items():
        assert file.resolve() == Path("secret/c.wav").resolve()
        assert (Path("/o") / name).resolve().is_relative_to("/o")


def test_names_that_two_folders_share_lead_no_output_out_of_its_folder_either(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("A", "cwd/B"):
        Path(folder).mkdir(parents=True)
        Path(folder, "x.wav").touch()
    monkeypatch.chdir("cwd")
    assert [*output_stems(find_inputs(["../A", "B"], (".wav",), Path("o")))] == ["A/x", "cwd/B/x"]
