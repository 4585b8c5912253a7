"""docs/archives.md runs as it stands."""

from __future__ import annotations

import re

import pytest

from surf_lightning.cli import main
from surf_lightning.inference.separator import RegressionSeparator
from surf_lightning.networks.conv_tasnet import ConvTasNet
from tests.inference.test_separate import AUDIO, ROOT, record, save


def test_separating_and_classifying(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("silero_vad")
    network = ConvTasNet(2, 2, filters=8, bottleneck=4, hidden=8, repeats=1, blocks=1)
    save(RegressionSeparator(network, 2), AUDIO, "best.ckpt")
    for name in ("field", "wood"):
        record(f"in/{name}.wav", 1.0)
    assert main(["separate", "in", "--checkpoint", "best.ckpt", "--output", "separated"]) == 0
    classify, iterate = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "archives.md").read_text(), re.DOTALL)
    capsys.readouterr()
    exec(compile(classify, "archives.md", "exec"), {})
    assert len(re.findall(r"^\d\.\d\d  in/(\w+)\.wav$", capsys.readouterr().out, re.MULTILINE)) == 2
    names: dict[str, object] = {}
    exec(compile(iterate, "archives.md", "exec"), names)
    assert names["level"] != 0.0
