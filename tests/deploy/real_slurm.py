"""A real Slurm of Debian's packages: the controller and a daemon on each of a few hosts (namespaces)."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryoscale.testing.hosts import Host, Hosts, obstacle

TOOLS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
PATIENCE_S = 60.0

# One port each, no accounting, no cgroups: what a job may use is not the question here, how it ends is.
CONFIGURATION = """
ClusterName=try
SlurmctldHost=host1(10.77.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
KillWait=10
OverTimeLimit=0
JobRequeue=1
ReturnToService=2
NodeName=host[1-{count}] NodeAddr=10.77.0.[1-{count}] CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Say why there can be no Slurm here; empty if there can."""
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"needs {', '.join(lacking)} (slurmctld, slurmd, slurm-client, munge)"
    return obstacle()


class Slurm:
    """A Slurm that runs; commands are given on its first host."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons, and wait until every node is idle."""
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(folder=self.folder, count=self.hosts.count)
        )
        key, first = self.folder / "munge.key", self.hosts[1]
        first.inside("mungekey", "--create", f"--keyfile={key}")
        munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munged += [f"--{option}={self.folder}/munge.{end}" for option, end in files.items()]
        self._daemon(first, munged)
        self.wait_for(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._daemon(first, ["slurmctld", "-D"])
        for host in self.hosts:
            (self.folder / f"spool.{host.name}").mkdir()
            self._daemon(host, ["slurmd", "-D", "-N", host.name])
        self.wait_for(lambda: self.ask("sinfo", "-h", "-o", "%T").split() == ["idle"], "the nodes")

    def _daemon(self, host: Host, words: list[str]) -> None:
        with (self.folder / f"{words[0]}.{host.name}.out").open("w") as log:
            options = {"env": self.environment, "stdout": log, "stderr": subprocess.STDOUT}
            self.hosts.started.append(host.popen(words, **options))

    def ask(self, *words: str, **environment: str) -> str:
        """Give a command on the first host; returns what it says, empty when it fails."""
        done = self.hosts[1].run(
            words, timeout=PATIENCE_S, env={**self.environment, **environment}, cwd=self.folder
        )
        return done.stdout if done.returncode == 0 else ""

    def submit(self, *words: str, **environment: str) -> str:
        """Submit a script and return the number of its job."""
        done = self.hosts[1].run(
            ["sbatch", "--parsable", *words], env={**self.environment, **environment}, cwd=self.folder
        )
        assert done.returncode == 0, done.stdout
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Return the state of a job, "RUNNING" for one."""
        return self.field(job, "JobState")

    def field(self, job: str, name: str) -> str:
        """Return one of the things that `scontrol show job` says."""
        words = self.ask("scontrol", "show", "job", job).split()
        return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")

    def hasten(self, job: str) -> None:
        """Let a job that was put back begin soon: Slurm holds it back for two minutes."""
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now+3seconds")

    def wait_for(
        self, there: Callable[[], bool], what: str, seconds: float = PATIENCE_S, log: Callable[[], str] = str
    ) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while not there():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not so after {seconds:.0f} s\n{log()}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """Return the ends of all logs."""
        texts = []
        for file in sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*.out")):
            with contextlib.suppress(OSError):
                texts.append(f"-- {file.name}\n{file.read_text(errors='replace')[-600:]}")
        return "\n".join(texts)


@contextmanager
def slurm(folder: Path, count: int, shared: Path) -> Iterator[Slurm]:
    """Run a Slurm of so many nodes; its `folder` lies in one that is `shared`, and all ends with it."""
    with Hosts(count, keep=(shared,)) as hosts:
        made = Slurm(hosts, folder)
        made.start()
        yield made
