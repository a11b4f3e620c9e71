from __future__ import annotations

import os

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoscale.errors import ConfigurationError, MemoryBudgetError
from cryoscale.runtime.memory import available_bytes, check_plan, cpu_count, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GB", 4 * 10**9),
        ("512MiB", 512 << 20),
        ("1.5 g", 1_500_000_000),
        ("0", 0),
        (7, 7),
        (" 2 TiB ", 2 << 40),
        (".5k", 500),
    ],
)
def test_sizes(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "4 XB", "-1GB", "4iB", "1e9", -1, True, None, "4GB of memory"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigurationError):
        parse_bytes(text)


@given(st.integers(0, 10**15))
def test_written_sizes_read_back_within_three_figures(count):
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.005, abs=0.5)


def test_this_machine():
    assert available_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert 1 <= cpu_count() <= len(os.sched_getaffinity(0))


def machine(tmp_path, cgroup, files, available_kb=8_000_000):
    files = {
        "proc/self/cgroup": cgroup,
        "proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {available_kb} kB\n",
        **files,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_limits_of_version_2_groups_and_their_parents(tmp_path):
    root = machine(
        tmp_path,
        "0::/slurm/job7\n",
        {
            "sys/fs/cgroup/slurm/job7/memory.max": "max\n",
            "sys/fs/cgroup/slurm/job7/memory.current": "900\n",
            "sys/fs/cgroup/slurm/memory.max": "2000000\n",
            "sys/fs/cgroup/slurm/memory.current": "1500000\n",
            "sys/fs/cgroup/slurm/memory.stat": "anon 1\ninactive_file 300000\n",
            "sys/fs/cgroup/slurm/job7/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slurm/cpu.max": "50000 100000\n",
        },
    )
    assert available_bytes(root) == 2_000_000 - (1_500_000 - 300_000)
    assert cpu_count(root) == 1  # half a core is still one worker


def test_limits_of_version_1_groups(tmp_path):
    root = machine(
        tmp_path,
        "11:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
        {
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "4000000\n",
            "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "1000000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
        },
    )
    assert available_bytes(root) == 3_000_000
    assert cpu_count(root) == 1


def test_without_limits_the_kernel_decides(tmp_path):
    root = machine(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, available_kb=123)
    assert available_bytes(root) == 123 * 1024
    assert cpu_count(root) == len(os.sched_getaffinity(0))


def test_a_plan_that_fits_passes_and_one_byte_more_does_not():
    check_plan("pick", "tomo1", 1000, 4, 4000)
    with pytest.raises(
        MemoryBudgetError, match="pick of tomo1 needs 1 kB for each of 4 workers, 4 kB together"
    ):
        check_plan("pick", "tomo1", 1000, 4, 3999)


def test_the_remedy_is_one_that_works():
    with pytest.raises(MemoryBudgetError, match="use 3 workers instead of 8"):
        check_plan("encode", "tomo1", 1_000_000_000, 8, parse_bytes("3.5GB"))
    check_plan("encode", "tomo1", 1_000_000_000, 3, parse_bytes("3.5GB"))
    with pytest.raises(MemoryBudgetError) as caught:
        check_plan("cluster", "", 5_000_000_000, 1, 10)
    assert "workers instead" not in str(caught.value)
    assert str(caught.value).startswith("cluster needs")
    raised = str(caught.value).split("execution.memory_budget to ")[1].split(" if")[0]
    check_plan("cluster", "", 5_000_000_000, 1, parse_bytes(raised))


def test_the_default_budget_is_this_machine():
    check_plan("pick", "t", 1, 1)
    with pytest.raises(MemoryBudgetError):
        check_plan("pick", "t", 1 << 50, 1)
