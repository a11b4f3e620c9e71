"""The batch scripts: what they call, with which words, how they end, and what goes back into the queue."""

from __future__ import annotations

import stat

import pytest

from tests.deploy.scripts import Script

JOB = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "3", "SLURM_CPUS_PER_TASK": "8", "SLURM_CPUS_ON_NODE": "8",
    "SLURM_MEM_PER_NODE": "16000", "CRYOSCALE_GRACE_S": "20", "STANDIN_MEMBERS": "3",
}  # fmt: skip
# The last task has the number of the array as its own: what is said of 90 is said of all tasks.
ARRAY = {"SLURM_JOB_ID": "90", "SLURM_ARRAY_JOB_ID": "90", "SLURM_ARRAY_TASK_ID": "2"}
DASK, RAY = "tls://10.0.0.1:24711", "10.0.0.1:30711"


@pytest.fixture
def job(tmp_path):
    return Script("slurm/cryoscale.sbatch", tmp_path, {**JOB, "SLURM_SUBMIT_DIR": str(tmp_path)})


@pytest.fixture
def task(tmp_path):
    (tmp_path / "runs.txt").write_text("/data/one\n\n/data/two runs\n/data/three\n")
    return Script("slurm/array.sbatch", tmp_path, ARRAY)


# -- one run over many nodes -------------------------------------------------------------------------------


def test_the_first_node_leads_the_others_join_and_the_driver_runs(job):
    code, said = job.run("/data/run", "--until", "encode")
    assert code == 0, said
    common = (
        "--port 24711 --ray-port 30711 --scratch /tmp --grace 5 --workers 8 --cpus 8 --gpus 0 --memory 1800MB"
    )
    assert job.calls("cryoscale engine lead") == [f"cryoscale engine lead --host 10.0.0.1 {common}"]
    assert (
        job.calls("cryoscale engine join") == [f"cryoscale engine join 10.0.0.1 --host 10.0.0.2 {common}"] * 2
    )
    assert job.calls("cryoscale run") == [
        f"cryoscale run /data/run --dask {DASK} --ray {RAY} --wait-for-driver 300 --quiet --until encode"
    ]
    assert len(job.calls("lead got TERM")) == 1
    assert len(job.calls("join got TERM")) == 2
    assert not job.calls("scontrol requeue")


def test_srun_starts_one_task_a_node_with_the_cores_of_the_job(job):
    job.run("/data/run")
    for line in job.calls("srun"):
        assert "--nodes=3 --ntasks=3 --ntasks-per-node=1" in line
    assert " --cpus-per-task=8 " in job.calls("srun")[-1]


def test_secrets_are_the_jobs_own_private_and_gone_with_it(job, tmp_path):
    job.start("/data/run", STANDIN_CODES="term")
    job.await_call("run ready")
    folder = tmp_path / ".cryoscale-job-4711"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert job.calls("cryoscale engine secrets") == [
        f"cryoscale engine secrets {folder}/secrets --days 30 --host 10.0.0.2 --host 10.0.0.2 --host 10.0.0.2"
    ]
    job.term()
    job.end()
    assert not folder.exists()


def test_given_secrets_are_used_and_stay(job, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    job.run("/data/run", CRYOSCALE_SECRETS=str(given))
    assert not job.calls("cryoscale engine secrets")
    assert given.exists()


def test_no_secret_is_on_a_command_line(job):
    job.run("/data/run")
    assert not [line for line in job.calls("srun") + job.calls("cryoscale engine l") if "secrets/" in line]


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "10.0.0.1"),
        ({"STANDIN_IB": "yes"}, "10.8.0.1"),
        ({"STANDIN_IB": "yes", "CRYOSCALE_INTERFACE": "fast0"}, "10.9.0.1"),
    ],
    ids=["first", "infiniband", "named"],
)
def test_the_address_is_that_of_the_fast_interface(job, settings, address):
    job.run("/data/run", **settings)
    assert f"--host {address} " in job.calls("cryoscale engine lead")[0]
    assert f"--dask tls://{address}:" in job.calls("cryoscale run")[0]


def test_an_interface_that_is_not_there_ends_the_job_at_once(job):
    code, said = job.run("/data/run", CRYOSCALE_INTERFACE="none0")
    assert code == 1
    assert "no address on none0" in said
    assert not job.calls("srun")


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ({"SLURM_MEM_PER_NODE": "", "SLURM_MEM_PER_CPU": "2000"}, "--memory 1800MB"),
        ({"SLURM_MEM_PER_NODE": "0"}, ""),
        ({"CRYOSCALE_WORKERS": "4"}, "--memory 3600MB"),
    ],
    ids=["per core", "unknown", "fewer workers"],
)
def test_memory_is_what_slurm_grants(job, memory, words):
    job.run("/data/run", **memory)
    assert job.calls("cryoscale engine lead")[0].partition("--gpus 0")[2].strip() == words


def test_gpus_and_local_scratch_are_passed_on(job):
    job.run("/data/run", SLURM_GPUS_ON_NODE="4", CRYOSCALE_SCRATCH="/local")
    assert all("--gpus 4" in line and "--scratch /local" in line for line in job.calls("cryoscale engine j"))


def test_cryoscale_may_be_several_words(job):
    job.run("/data/run", CRYOSCALE_COMMAND="env cryoscale")
    assert job.calls("cryoscale engine lead")
    assert job.calls("cryoscale run")


def test_the_driver_waits_until_members_are_ready(job):
    code, _ = job.run("/data/run", STANDIN_UNREADY="1")
    assert code == 0
    assert len(job.calls("cryoscale engine check")) == 2
    assert (
        job.calls("cryoscale engine check")[0]
        == f"cryoscale engine check --any /data/run --dask {DASK} --ray {RAY}"
    )


def test_members_that_are_never_ready_end_the_job(job):
    code, said = job.run("/data/run", STANDIN_UNREADY="1000", CRYOSCALE_READY_S="1")
    assert code == 75
    assert "not ready after 1 s" in said
    assert not job.calls("cryoscale run")
    assert job.calls("scontrol requeue 4711")


def test_members_that_end_before_they_are_ready_are_not_waited_for(job):
    code, said = job.run("/data/run", STANDIN_UNREADY="1000", STANDIN_MEMBER="1", STANDIN_MEMBERS="0")
    assert code == 75
    assert "the members ended" in said


@pytest.mark.parametrize(("code", "again"), [(0, 0), (1, 0), (2, 0), (137, 0), (75, 1), (143, 1)])
def test_only_what_another_try_can_help_goes_back_into_the_queue(job, code, again):
    ended, said = job.run("/data/run", STANDIN_CODES=str(code))
    assert ended == code, said
    assert len(job.calls("scontrol requeue 4711")) == again


@pytest.mark.parametrize(("count", "again"), [("1", 1), ("2", 0), ("3", 0)])
def test_how_often_is_limited(job, count, again):
    code, said = job.run("/data/run", STANDIN_CODES="75", SLURM_RESTART_COUNT=count, CRYOSCALE_REQUEUES="2")
    assert code == 75
    assert len(job.calls("scontrol requeue")) == again
    assert ("times are enough" in said) == (not again)


def test_surroundings_that_fail_again_and_again_are_not_tried_as_often(job, tmp_path):
    (tmp_path / ".cryoscale-failures-4711").write_text("4\n")
    job.run("/data/run", STANDIN_CODES="75", SLURM_RESTART_COUNT="4")
    assert len(job.calls("scontrol requeue")) == 1
    code, said = job.run("/data/run", STANDIN_CODES="75", SLURM_RESTART_COUNT="5")
    assert (code, len(job.calls("scontrol requeue"))) == (75, 1)
    assert "6 times in a row" in said
    assert not list(tmp_path.glob(".cryoscale-failures-*"))


@pytest.mark.parametrize("between", ["143", "0", "1"])
def test_failures_of_the_surroundings_count_in_a_row(job, between):
    """A job that was preempted in between had found its workers."""
    limit = {"CRYOSCALE_REQUEUES_FAILED": "1", "SLURM_RESTART_COUNT": "9"}
    for code in ("75", between, "75"):
        _, said = job.run("/data/run", STANDIN_CODES=code, **limit)
    assert "back into the queue (10 of at most 20 times)" in said


def test_what_slurm_says_may_be_long(job):
    """A reader that stops at the first match would end the writer by SIGPIPE, as if nothing had matched."""
    job.run("/data/run", STANDIN_CODES="75", STANDIN_MORE="1000000")
    assert job.calls("scontrol requeue 4711")


def test_of_a_chain_of_jobs_one_goes_back(job):
    job.run("/data/run", STANDIN_CODES="75", SLURM_ARRAY_JOB_ID="4711", SLURM_ARRAY_TASK_ID="5")
    assert job.calls("scontrol") == ["scontrol show job 4711_5", "scontrol requeue 4711_5"]


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({}, ["4000"]),
        ({"STANDIN_SQUEUE": "1"}, []),
        ({"STANDIN_JOBS": "4700"}, []),
        ({"SLURM_CLUSTER_NAME": "theirs"}, ["4710"]),
    ],
    ids=["ended", "Slurm does not answer", "jobs of others", "another cluster"],
)
def test_secrets_of_jobs_that_were_killed_outright_are_removed(job, tmp_path, settings, gone):
    for number, cluster in (("4000", "ours"), ("4700", "ours"), ("4710", "theirs")):
        (tmp_path / f".cryoscale-job-{number}" / "secrets").mkdir(parents=True)
        (tmp_path / f".cryoscale-job-{number}" / "cluster").write_text(f"{cluster}\n")
    (tmp_path / ".cryoscale-job-notes").mkdir()
    code, said = job.run(
        "/data/run", **{"STANDIN_JOBS": "4700 4711", "SLURM_CLUSTER_NAME": "ours", **settings}
    )
    assert code == 0, said
    left = {folder.name.removeprefix(".cryoscale-job-") for folder in tmp_path.glob(".cryoscale-job-*")}
    assert left == {"4000", "4700", "4710", "notes"} - set(gone)


def test_preemption_is_passed_to_the_driver_then_the_job_goes_back(job):
    job.start("/data/run", STANDIN_CODES="term")
    job.await_call("run ready")
    job.term()
    code, said = job.end()
    assert code == 143, said
    assert job.calls("run got TERM")
    assert job.calls().index("run got TERM") < job.calls().index("lead got TERM")
    assert job.calls("scontrol requeue 4711")


def test_asked_to_stop_while_waiting_for_members_no_driver_is_started(job):
    job.start("/data/run", STANDIN_UNREADY="1000")
    job.await_call("cryoscale engine check")
    job.term()
    code, _ = job.end()
    assert code == 143
    assert not job.calls("cryoscale run")
    assert job.calls("scontrol requeue")


def test_a_cancelled_job_stays_cancelled(job):
    code, said = job.run("/data/run", STANDIN_CODES="143", STANDIN_STATE="CANCELLED")
    assert code == 143
    assert not job.calls("scontrol requeue")
    assert "cancelled" in said


def test_a_requeue_that_slurm_refuses_is_said(job):
    code, said = job.run("/data/run", STANDIN_CODES="75", STANDIN_REQUEUE="1")
    assert code == 75
    assert "submit it again" in said


def test_without_a_run_nothing_is_started(job):
    code, said = job.run()
    assert code == 2
    assert "which run?" in said
    assert not job.calls()


# -- many runs, one node each ------------------------------------------------------------------------------


def test_each_task_takes_its_line(task):
    code, said = task.run("runs.txt", "--until", "pick")
    assert code == 0, said
    assert task.calls() == ["cryoscale run /data/two runs --wait-for-driver 300 --quiet --until pick"]


def test_a_line_that_is_not_there_is_misuse(task):
    code, said = task.run("runs.txt", SLURM_ARRAY_TASK_ID="4")
    assert code == 2
    assert "no line 4" in said


def test_no_list_is_misuse(task):
    assert task.run("nothing.txt")[0] == 2


@pytest.mark.parametrize(("code", "again"), [(0, 0), (1, 0), (2, 0), (75, 1), (143, 1)])
def test_a_task_goes_back_by_the_same_rule(task, code, again):
    assert task.run("runs.txt", STANDIN_CODES=str(code))[0] == code
    assert len(task.calls("scontrol requeue 90_2")) == again


def test_of_an_array_only_the_task_itself_is_asked_about_and_put_back(task):
    task.run("runs.txt", STANDIN_CODES="75", STANDIN_MORE="1000000")
    assert task.calls("scontrol") == ["scontrol show job 90_2", "scontrol requeue 90_2"]


def test_a_task_without_workers_goes_back_less_often(task):
    for count in range(6):
        _, said = task.run("runs.txt", STANDIN_CODES="75", SLURM_RESTART_COUNT=str(count))
    assert len(task.calls("scontrol requeue 90_2")) == 5
    assert "6 times in a row" in said


def test_a_task_goes_back_only_so_often(task):
    task.run("runs.txt", STANDIN_CODES="75", SLURM_RESTART_COUNT="20")
    assert not task.calls("scontrol requeue")


def test_a_task_that_is_preempted_tells_its_driver(task):
    task.start("runs.txt", STANDIN_CODES="term")
    task.await_call("run ready")
    task.term()
    assert task.end()[0] == 143
    assert task.calls("run got TERM")
    assert task.calls("scontrol requeue 90_2")
