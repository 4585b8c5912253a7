"""A SLURM of two nodes on this machine, from Debian's packages slurm-wlm and munge: sbatch, srun, signals, requeueing.

python -m tests.cluster.slurm FOLDER      starts one and prints the line for a shell; Ctrl-C ends it
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
NODES = ("n1", "n2")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
# A requeued job waits until its old credential is worthless: 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=requeue_delay=1,bf_interval=2,sched_interval=2
KillWait=20
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} Gres=gpu:8
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} Gres=gpu:8
PartitionName=main Nodes=n1,n2 Default=YES State=UP
"""


def missing() -> str:
    """Why no SLURM can be started here, "" if one can."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"there is no {absent[0]}: apt-get install slurm-wlm munge" if absent else ""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait until ``condition()``; returns how long it took, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.5)
    return time.monotonic() - began


class Slurm:
    """The daemons, all in the foreground of processes that ``stop`` ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.daemons = folder, list[subprocess.Popen[bytes]]()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state").mkdir(exist_ok=True)
        self.conf = folder / "slurm.conf"
        # Ranks meet at this address: the nodes' names are known to SLURM alone.
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf), "MASTER_ADDR": "127.0.0.1"}
        host = socket.gethostname().partition(".")[0]
        for number in range(8):
            (folder / f"gpu{number}").touch()  # what is counted as GPUs, and not used
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
        self.conf.write_text(CONF.format(host=host, folder=folder, ports=free_ports(3), cpus=os.cpu_count()))

    def start(self) -> None:
        key, munge = self.folder / "munge.key", self.folder / "munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        # By force: for a test, the folder need not be safe from all users of the machine.
        own = [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self._daemon("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}", *own)
        wait_for(munge.exists, 60, "munged")
        self._daemon("slurmctld", "-D", "-f", str(self.conf))
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node, "-f", str(self.conf))
        wait_for(lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D", check=False) == "2", 60, "two idle nodes")

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("ab") as log:
            started = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        self.daemons.append(started)

    def stop(self) -> None:
        with suppress(subprocess.SubprocessError):
            self.run("scancel", "--user=root", check=False)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:  # it waits for a job that does not end
                daemon.kill()

    def run(self, *command: str, check: bool = True) -> str:
        """The output of one of SLURM's commands."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str) -> str:
        return self.run("sbatch", "--parsable", *arguments)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED ..."""
        shown = self.run("scontrol", "-o", "show", "job", job)
        return shown.partition("JobState=")[2].split()[0]


def ranks(folder: Path) -> list[int]:
    """The processes that train into ``folder``, by their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"fit" in words and os.fsencode(folder) in words and not words[0].endswith(b"srun"):
                found.append(int(path.parent.name))
    return sorted(found)


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    cluster = Slurm(Path(sys.argv[1]).absolute())
    cluster.start()
    print(f"export SLURM_CONF={cluster.conf} MASTER_ADDR=127.0.0.1", flush=True)
    with suppress(KeyboardInterrupt):
        signal.pause()
    cluster.stop()
