"""The batch scripts under a real Slurm of three nodes, with a stand-in for cryoscale: how jobs end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from cryoscale.testing.phantoms import small_run, write_phantom
from tests.deploy.real_slurm import Slurm, missing, slurm
from tests.deploy.scripts import DEPLOY, STANDINS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
JOB = DEPLOY / "slurm" / "cryoscale.sbatch"
OPTIONS = ("--nodes=3", "--cpus-per-task=2", "--mem=1000M")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if why := missing():
        pytest.skip(why)
    with slurm(tmp_path_factory.mktemp("slurm"), 3, tmp_path_factory.getbasetemp()) as made:
        yield made


class Job:
    """A batch script that was submitted with the stand-in."""

    def __init__(self, cluster: Slurm, folder: Path) -> None:
        self.cluster, self.folder, self.number = cluster, folder, ""
        self.folder.mkdir()

    def submit(self, script, *words, options=(), **environment):
        (self.folder / "calls").touch()
        self.number = self.cluster.submit(
            f"--output={self.folder}/log", f"--chdir={self.folder}", *options, str(script), *words,
            **{"CRYOSCALE_COMMAND": str(STANDINS / "cryoscale"), **environment},
            STANDIN_LOG=str(self.folder / "calls"),
        )  # fmt: skip

    def calls(self, start):
        return [line for line in (self.folder / "calls").read_text().splitlines() if line.startswith(start)]

    def log(self):
        file = self.folder / "log"
        return file.read_text() if file.exists() else ""

    def wait(self, state, seconds=60.0):
        states = (state,) if isinstance(state, str) else state
        self.cluster.wait_for(
            lambda: self.state() in states, f"job {self.number} {states}", seconds, self.log
        )

    def wait_restarted(self):
        """Wait until it is in the queue again."""
        field = self.cluster.field
        self.cluster.wait_for(
            lambda: (field(self.number, "Restarts"), self.state()) == ("1", "PENDING"),
            f"requeue:\n{self.log()}",
        )

    def state(self):
        return self.cluster.state(self.number)

    def batch_script(self):
        """Find the shell at work on the script, by the name that Slurm gives its copy."""
        lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in self.cluster.hosts[1].processes()}
        name = f"job{int(self.number):05}/slurm_script"
        return min(pid for pid, file in lines.items() if file.exists() and name in file.read_text())

    def await_call(self, start, count=1):
        self.cluster.wait_for(lambda: len(self.calls(start)) >= count, start, log=self.log)


@pytest.fixture
def job(cluster, tmp_path_factory):
    made = Job(cluster, tmp_path_factory.mktemp("job") / "job")
    yield made
    cluster.ask("scancel", made.number)
    cluster.wait_for(lambda: not cluster.ask("squeue", "-h", "-j", made.number).strip(), "its end")


def test_three_nodes_find_each_other_and_the_job_completes(job):
    job.submit(JOB, "/data/run", options=OPTIONS, STANDIN_MEMBERS="3")
    job.wait("COMPLETED")
    dask, ray = 20000 + int(job.number) % 10000, 30000 + int(job.number) % 2000
    (lead,) = job.calls("cryoscale engine lead")
    common = f"--port {dask} --ray-port {ray} --scratch /tmp --grace 5"
    common += " --workers 2 --cpus 2 --gpus 0 --memory 450MB"
    assert lead == f"cryoscale engine lead --host 10.77.0.1 {common}"
    assert sorted(job.calls("cryoscale engine join")) == [
        f"cryoscale engine join 10.77.0.1 --host 10.77.0.{n} {common}" for n in (2, 3)
    ]
    (run,) = job.calls("cryoscale run")
    assert run.startswith(f"cryoscale run /data/run --dask tls://10.77.0.1:{dask} --ray 10.77.0.1:{ray} ")
    assert len(job.calls("lead got TERM")) == 1, job.log()
    assert len(job.calls("join got TERM")) == 2
    named = "--host 10.77.0.1 --host 10.77.0.2 --host 10.77.0.3"
    assert sorted(job.calls("cryoscale engine secrets")[0].partition("30 ")[2].split()) == sorted(
        named.split()
    )
    assert not list(job.cluster.folder.glob(".cryoscale-job-*"))


@pytest.mark.parametrize("code", [1, 2])
def test_failed_work_ends_the_job(job, code):
    job.submit(JOB, "/data/run", options=OPTIONS, STANDIN_MEMBERS="3", STANDIN_CODES=str(code))
    job.wait("FAILED")
    assert job.cluster.field(job.number, "ExitCode") == f"{code}:0"
    assert job.cluster.field(job.number, "Restarts") == "0"


def test_secrets_of_a_job_that_was_killed_outright_go_with_the_next(job):
    job.submit(JOB, "/data/run", options=OPTIONS, STANDIN_MEMBERS="3", STANDIN_CODES="term")
    job.await_call("run ready")
    (left,) = job.cluster.folder.glob(".cryoscale-job-*")
    os.kill(job.batch_script(), signal.SIGKILL)
    job.cluster.wait_for(lambda: not job.cluster.ask("squeue", "-h").strip(), "its end")
    assert (left / "secrets").exists()
    job.submit(JOB, "/data/run", options=OPTIONS)
    job.wait("COMPLETED")
    assert not list(job.cluster.folder.glob(".cryoscale-job-*")), job.log()


def test_failed_surroundings_put_it_back_and_not_for_ever(job):
    job.submit(
        JOB, "/data/run", options=OPTIONS, STANDIN_MEMBERS="3", STANDIN_CODES="75", CRYOSCALE_REQUEUES="1"
    )
    job.wait_restarted()
    job.cluster.hasten(job.number)
    job.wait("FAILED")
    assert job.cluster.field(job.number, "ExitCode") == "75:0", job.log()
    assert len(job.calls("cryoscale run")) == 2
    assert "1 times are enough" in job.log()


def test_before_the_time_limit_the_driver_is_asked_to_stop_and_the_job_goes_back(job):
    job.submit(
        JOB, "/data/run", options=(*OPTIONS, "--time=1", "--signal=B:TERM@50"),
        STANDIN_MEMBERS="3", STANDIN_CODES="term",
    )  # fmt: skip
    job.await_call("run got TERM")
    job.wait_restarted()
    assert "back into the queue" in job.log()


def test_a_preempted_job_comes_back_and_goes_on(job):
    job.submit(JOB, "/data/run", options=OPTIONS, STANDIN_MEMBERS="3", STANDIN_CODES="term")
    job.await_call("run ready")
    job.cluster.ask("scontrol", "requeue", job.number)  # what Slurm does with PreemptMode=REQUEUE
    job.await_call("run got TERM")
    job.wait_restarted()
    job.cluster.hasten(job.number)
    job.await_call("run ready", 2)
    assert job.cluster.field(job.number, "Restarts") == "1"


def test_a_cancelled_job_stays_cancelled(job):
    job.submit(JOB, "/data/run", options=OPTIONS, STANDIN_MEMBERS="3", STANDIN_CODES="term")
    job.await_call("run ready")
    job.cluster.ask("scancel", job.number)
    job.await_call("lead got TERM")
    job.wait("CANCELLED")
    job.cluster.wait_for(lambda: not job.cluster.ask("squeue", "-h", "-j", job.number).strip(), "its end")
    assert job.state() == "CANCELLED"


def test_an_array_takes_one_run_a_task(job):
    job.folder.joinpath("runs.txt").write_text("/data/one\n/data/two\n/data/three\n")
    job.submit(
        DEPLOY / "slurm" / "array.sbatch",
        "runs.txt",
        options=("--array=1-3", "--cpus-per-task=2", "--mem=500M"),
    )
    job.await_call("cryoscale run", 3)
    assert sorted(line.split()[2] for line in job.calls("cryoscale run")) == [
        "/data/one",
        "/data/three",
        "/data/two",
    ]
    job.cluster.wait_for(lambda: not job.cluster.ask("squeue", "-h", "-j", job.number).strip(), "its end")


def test_the_last_task_of_an_array_goes_back_alone(job):
    # The last one has the number of the whole array: a word about that number is one about all tasks.
    job.folder.joinpath("runs.txt").write_text("/data/one\n/data/two\n/data/three\n")
    options = ("--array=1-3", "--cpus-per-task=1", "--mem=500M")
    job.submit(
        DEPLOY / "slurm" / "array.sbatch", "runs.txt", options=options, STANDIN_CODES="0,term,after:75"
    )
    one, two, three = (f"{job.number}_{n}" for n in (1, 2, 3))
    ask = job.cluster
    ask.wait_for(lambda: ask.state(one) == "COMPLETED", "the first one's end", log=job.log)
    job.await_call("cryoscale run", 3)
    job.await_call("run ready")
    assert ask.field(three, "JobId") == job.number
    (job.folder / "calls.go").touch()
    ask.wait_for(lambda: ask.state(three) == "PENDING", "requeue", log=job.log)
    assert [ask.field(task, "Restarts") for task in (one, two, three)] == ["0", "0", "1"]
    assert [ask.state(task) for task in (one, two)] == ["COMPLETED", "RUNNING"]
    assert not job.calls("run got TERM")


@pytest.mark.timeout(300)
def test_a_run_of_three_nodes_to_its_end(job, tmp_path_factory):
    place = job.folder / "run"
    sources = [write_phantom(job.folder / f"t{n}.mrc", (40, 64, 64), seed=n) for n in range(2)]
    small_run(place, sources, "execution.ray_threads=1", "execution.start_timeout_s=60")
    job.submit(
        JOB, str(place), "--until", "encode", options=(*OPTIONS, "--time=5"),
        CRYOSCALE_COMMAND=str(Path(sys.executable).with_name("cryoscale")), CRYOSCALE_WORKERS="1",
    )  # fmt: skip
    job.wait(("COMPLETED", "FAILED"), 240)
    assert job.state() == "COMPLETED", job.log()
    assert len(list((place / "encodings").glob("*.zarr"))) == 2
    assert "forcing job termination" not in job.log(), "members did not end when they were told"
