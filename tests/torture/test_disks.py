"""Full disks and changed bytes: it is said, nothing partial stays, the last good checkpoint is used."""

from __future__ import annotations

import logging
import os
import resource
import shutil
from pathlib import Path

import pytest

from surf_lightning.cli import main
from surf_lightning.engine.run_folder import checkpoint_to_continue
from surf_lightning.errors import UserError
from surf_lightning.inference.checkpoint import read_checkpoint
from tests.test_configs import arguments
from tests.torture import faults
from tests.torture.conftest import Mount, Trials, fill


@pytest.mark.slow
def test_files_that_find_no_room(trials: Trials) -> None:
    """Files of a random size fail, as on a full disk: checkpoints, metrics, pictures or the configuration."""
    faults.earlier_stage()
    ended = {0: 0, 2: 0}
    for random in trials:
        limit = int(10 ** random.uniform(3.4, 5.7))
        steps = faults.last_step() + 20

        def full(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            logging.raiseExceptions = False  # the log goes into a file of pytest's, which is soon that long

        process = faults.start(faults.surf(faults.RUN, steps), full)
        process.join(faults.PATIENCE)
        assert process.exitcode in ended, faults.said()
        ended[process.exitcode] += 1
        assert "Traceback" not in faults.said()
        assert process.exitcode == 0 or "File too large" in faults.said()
        faults.last_step()
        assert not list(Path(faults.RUN).rglob("*.partial"))
    trials.facts |= {"went on": ended[0], "stopped": ended[2], "steps": faults.assert_as_if_undisturbed()}


def test_a_changed_byte_is_noticed(trials: Trials) -> None:
    faults.earlier_stage()
    last = Path("runs/digits_mixit/checkpoints/last.ckpt")
    shutil.copy(last, last.with_name("step_0000001.ckpt"))
    whole = last.read_bytes()
    damages = 0
    for random in trials:
        for _ in range(25):
            damaged = bytearray(whole)
            if random.random() < 0.7:
                damaged[random.randrange(len(whole))] ^= random.randrange(1, 256)
            else:
                del damaged[random.randrange(len(whole)) :]
            last.write_bytes(damaged)
            with pytest.raises(UserError):
                read_checkpoint(last)
            damages += 1
        with pytest.warns(UserWarning, match="goes on from"):
            assert checkpoint_to_continue(last.parents[1], "last") != str(last)
    trials.facts |= {"damaged files": damages}


def parts(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "partial" in path.name]


@pytest.mark.slow
def test_a_disk_that_is_really_full(small_disk: Mount, capfd: pytest.CaptureFixture[str]) -> None:
    """A checkpoint, a report or an export ends its command; a picture or the metrics alone do not."""
    disk = small_disk("disk", "2m")
    run, last = disk / "run", disk / "run/checkpoints/last.ckpt"

    def fit(steps: int) -> int:
        options = ["--trainer.default_root_dir", str(run), "--ckpt_path", "last", "--trainer.logger", "false"]
        return main([*arguments("digits_mixit", Path()), *options, "--trainer.max_steps", str(steps)])

    def refused(code: int, what: str) -> None:
        said = capfd.readouterr().err.splitlines()[-1]
        assert code == 2
        assert said.startswith("surf ")
        assert what in said
        assert said.endswith("No space left on device")
        assert not parts(disk)
        assert read_checkpoint(last)["global_step"] == 2

    assert fit(2) == 0
    assert main(["report", str(run), "--output", str(disk / "page")]) == 0
    page = {path.name: path.read_bytes() for path in (disk / "page").iterdir()}
    filler = fill(disk)
    os.truncate(filler, filler.stat().st_size - 100_000)  # room for all but a checkpoint
    refused(fit(4), "best.ckpt")
    fill(disk)
    refused(fit(4), "config.yaml")
    refused(main(["report", str(run), "--output", str(disk / "page")]), "report.html")
    assert page == {path.name: path.read_bytes() for path in (disk / "page").iterdir()}
    refused(main(["report", str(run), "--output", str(disk / "new")]), "report.html")
    refused(
        main(["export", "--checkpoint", str(last), "--output", str(disk / "model")]), "disk/model cannot be written"
    )
    assert {path.name for path in disk.iterdir()} == {"run", "page", "filler"}
    filler.unlink()
    fill(small_disk(str(run / "media"), "4k"))
    with pytest.warns(UserWarning, match=r"media/step_0000004\.png is left out: No space left on device"):
        assert fit(4) == 0
    assert read_checkpoint(last)["global_step"] == 4
