"""docs/surf.sbatch, torchrun and the tables' workflow on a real SLURM of two nodes: `make test-cluster`, in minutes.

Whatever happens to a run, its last tensors are those of a run that nothing happens to.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.cluster.slurm import Slurm, missing, ranks, wait_for

REPOSITORY = Path(__file__).parents[2]
STEPS = 150
LONG = 600.0  # seconds that a busy machine may take for anything
SMALL = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
TINY = ("--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", "--data.num_validation", "64")
PREEMPTED = re.compile(r"preempted at step (\d+), checkpoint written, requeued")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("TEST_CLUSTER" not in os.environ, reason="starts daemons: make test-cluster"),
    pytest.mark.skipif(missing() != "", reason=missing() or "SLURM is here"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    cluster.environment |= {"WANDB_MODE": "offline", "PYTHONPATH": str(REPOSITORY / "src")}
    cluster.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{cluster.environment['PATH']}"
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class Run:
    """A job of the shipped file, with the changes that its head asks for."""

    def __init__(self, slurm: Slurm, folder: Path, *options: str, without: str = "", also: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True)
        self.slurm, self.folder, self.log = slurm, folder, folder / "log.txt"
        lines = (REPOSITORY / "docs" / "surf.sbatch").read_text().splitlines()
        lines = [line for line in lines if not without or without not in line]
        text = "\n".join(lines) + "\n"
        for shipped, own in (("config=cifar_surf_rm", "config=digits_mixit"), ("batch=256", "batch=32")):
            assert shipped in text
            text = text.replace(shipped, own)
        text = text.replace("source .venv/bin/activate\n", "")
        (folder / "surf.sbatch").write_text(text)
        arguments = (*TINY, "--trainer.max_steps", str(STEPS), "--trainer.default_root_dir", str(folder / "run"), *also)
        where = (f"--output={self.log}", f"--chdir={folder}")
        self.job = slurm.submit(*where, *options, str(folder / "surf.sbatch"), *arguments)

    def lines(self) -> int:
        """Of metrics.csv: they grow with every step, also with one that is done again."""
        table = self.folder / "run" / "metrics.csv"
        return len(table.read_text().splitlines()) if table.is_file() else 0

    def go_on(self) -> None:
        """Wait for some steps more."""
        before = self.lines()

        def went_on() -> bool:
            assert self.slurm.state(self.job) != "FAILED", self.text()
            return self.lines() > before + 20

        wait_for(went_on, LONG, "steps")

    def until(self, *states: str, seconds: float = LONG) -> float:
        return wait_for(lambda: self.slurm.state(self.job) in states, seconds, f"{states}; {self.text()}")

    def text(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def tensors(self) -> dict[str, Tensor]:
        return tensors(self.folder / "run")

    def segments(self) -> set[str]:
        return {path.name.rpartition("-")[2] for path in (self.folder / "run" / "wandb").glob("offline-run-*")}


def tensors(folder: Path) -> dict[str, Tensor]:
    """Weights, and the optimizer's state, at the end of a run."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == STEPS
    (optimizer,) = checkpoint["optimizer_states"]
    moments = {f"{i} {name}": value for i, state in optimizer["state"].items() for name, value in state.items()}
    return checkpoint["state_dict"] | moments


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert len(found) > 100
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    run = Run(slurm, tmp_path_factory.mktemp("cluster") / "undisturbed", *SMALL)
    run.until("COMPLETED")
    assert "error" not in run.text().lower()
    return run.tensors()


def test_a_run_that_is_preempted_killed_and_drained_ends_as_if_nothing_had_been(
    slurm: Slurm, undisturbed: dict[str, Tensor], tmp_path: Path
) -> None:
    run = Run(slurm, tmp_path / "disturbed", *SMALL)
    run.go_on()
    slurm.run("scancel", "--signal=USR1", run.job)
    run.until("PENDING", "COMPLETING")
    assert len(PREEMPTED.findall(run.text())) == 1

    run.go_on()  # after the first restart
    os.kill(ranks(run.folder / "run")[-1], signal.SIGKILL)
    assert run.until("PENDING", "COMPLETING", seconds=60) < 60
    assert re.search(r"srun: error: n[12]: task [01]: Killed", run.text())
    wait_for(lambda: "a task was killed (above: which), requeued" in run.text(), 60, "the last word")

    run.go_on()  # after the second
    slurm.run("scontrol", "update", "nodename=n2", "state=drain", "reason=test")
    slurm.run("scontrol", "requeue", run.job)  # as SLURM does for a job of higher priority
    run.until("PENDING")
    wait_for(lambda: len(PREEMPTED.findall(run.text())) == 2, 60, run.text())
    slurm.run("scontrol", "update", "nodename=n2", "state=resume")
    run.until("COMPLETED")
    assert_same(run.tensors(), undisturbed)
    steps = [int(step) for step in PREEMPTED.findall(run.text())]
    assert 0 < steps[0] < steps[1] < STEPS
    assert "Traceback" not in PREEMPTED.split(run.text())[0]
    assert len(list((run.folder / "run" / "wandb").glob("offline-run-*"))) == 4
    assert run.segments() == {(run.folder / "run" / "wandb_id").read_text().strip()}
    print(f"\n{run.text()}")


def test_torchrun_starts_all_ranks_again_where_one_is_killed(
    slurm: Slurm, undisturbed: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = tmp_path / "elastic"
    command = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "2", "-m", "surf_lightning", "fit", "--config", "digits_mixit", "--ckpt_path", "last"]
    command += [*TINY, "--trainer.max_steps", str(STEPS), "--trainer.default_root_dir", str(folder)]
    command += ["--data.batch_size", "16", "--checkpoints.every_minutes", "0.05"]
    environment = {**slurm.environment, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as docs/surf.sbatch says
    with (tmp_path / "log.txt").open("w") as log:
        running = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for((folder / "checkpoints" / "last.ckpt").is_file, LONG, "a checkpoint")
            os.kill(ranks(folder)[-1], signal.SIGKILL)
            assert running.wait(LONG) == 0, (tmp_path / "log.txt").read_text()
        finally:
            running.terminate()
    assert_same(tensors(folder), undisturbed)


def test_a_run_at_its_time_limit_goes_back_into_the_queue_and_on(
    slurm: Slurm, undisturbed: dict[str, Tensor], tmp_path: Path
) -> None:
    slow = ("--trainer.val_check_interval", "1", "--data.num_validation", "400")  # which change no weight
    run = Run(slurm, tmp_path / "limited", *SMALL, "--time=60", "--signal=USR1@60", also=slow)
    run.go_on()
    minutes = int(slurm.run("squeue", "-h", "-o", "%M", "-j", run.job).split(":")[-2])
    slurm.run("scontrol", "update", f"jobid={run.job}", f"timelimit={minutes + 2}")
    run.until("PENDING", "COMPLETING")
    assert len(PREEMPTED.findall(run.text())) == 1
    assert "Traceback" not in run.text()
    assert "TIME LIMIT" not in run.text()
    slurm.run("scontrol", "update", f"jobid={run.job}", "timelimit=60")
    run.until("COMPLETED")
    assert 0 < int(PREEMPTED.findall(run.text())[0]) < STEPS
    assert_same(run.tensors(), undisturbed)


def test_one_node_of_one_gpu_by_deleting_lines(slurm: Slurm, tmp_path: Path) -> None:
    short = ("--trainer.max_steps", "3")
    run = Run(slurm, tmp_path / "small", "--cpus-per-task=1", without="# delete for one", also=short)
    run.until("COMPLETED")
    assert (run.folder / "run" / "checkpoints" / "last.ckpt").is_file()


def test_the_tables_workflow_with_a_preempted_job(slurm: Slurm, tmp_path: Path) -> None:
    profile = REPOSITORY / "experiments" / "profiles" / "slurm"
    command = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "experiments" / "Snakefile")]
    command += ["--workflow-profile", str(profile), "--directory", str(tmp_path)]
    arguments = " ".join((*TINY, "--trainer.max_steps", str(STEPS)))
    command += ["--config", f"args={arguments}", "--", "runs/digits_mixit/trained"]
    running = subprocess.Popen(
        command, cwd=tmp_path, env=slurm.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    table = tmp_path / "runs" / "digits_mixit" / "metrics.csv"
    wait_for(lambda: table.is_file() and table.read_text().count("\n") > 20, LONG, "steps")
    (job,) = slurm.run("squeue", "-h", "-o", "%i").split()
    slurm.run("scontrol", "requeue", job)
    output, _ = running.communicate(timeout=LONG)
    assert running.returncode == 0, output

    tensors(tmp_path / "runs" / "digits_mixit")
