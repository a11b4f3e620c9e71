"""What Prometheus is told: counts, estimates, names; and who may ask."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cryoscale.errors import ConfigurationError
from cryoscale.runtime.events import StageSealed, StageStarted, TaskEnded, UnitFailed
from cryoscale.runtime.metrics import EngineLoad, Load, RunMetrics
from cryoscale.runtime.metrics_server import AT_ONCE, Place, served
from cryoscale.runtime.secrets import Secrets

STATUSES = ("done", "empty", "failed", "lost", "quarantined")


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def value(metrics: RunMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"cryoscale_{name}", labels)


def get(url: str, context: ssl.SSLContext | None = None) -> str:
    with urllib.request.urlopen(url, timeout=10, context=context) as answer:
        return str(answer.read().decode())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> RunMetrics:
    made = RunMetrics("20260101-000000-abcdef", clock=clock)
    load = Load(
        {"cpu": EngineLoad(7, 3, "dask"), "model": EngineLoad(0, 1, "ray")},
        {"dask": 2, "ray": 1},
        0.0,
        {("pick", "sealed"): 1, ("pick", "pending"): 2},
    )
    made.watch(lambda: load, {"pick": ("cpu", "dask"), "encode": ("model", "ray")})
    return made


def test_blocks_are_counted_by_how_they_end(metrics: RunMetrics) -> None:
    for number, status in enumerate(STATUSES):
        metrics(TaskEnded(stage="pick", tomogram="t", block=number, status=status, voxels=10, seconds=2.0))
    metrics(TaskEnded(stage="pick", tomogram="t", block=-1, status="done", seconds=1.0))
    for status in ("done", "empty", "quarantined"):
        assert value(metrics, "blocks_total", stage="pick", status=status) == 1
    assert value(metrics, "blocks_total", stage="pick", status="failed") is None
    assert value(metrics, "seals_total", stage="pick", status="done") == 1
    for reason in ("failed", "lost"):
        assert value(metrics, "retries_total", stage="pick", reason=reason) == 1
    assert value(metrics, "voxels_total", stage="pick") == 50
    assert value(metrics, "block_seconds_count", stage="pick") == 2
    assert value(metrics, "block_seconds_bucket", stage="pick", le="1.0") == 0
    assert value(metrics, "block_seconds_bucket", stage="pick", le="3.0") == 2
    assert value(metrics, "task_seconds_total", engine="cpu", executor="dask") == 11.0


def test_tomograms_that_are_sealed_or_stop_are_counted(metrics: RunMetrics) -> None:
    metrics(StageSealed(stage="pick", tomogram="t"))
    metrics(UnitFailed(stage="pick", tomogram="u", reason="broken"))
    assert value(metrics, "tomograms_sealed_total", stage="pick") == 1
    assert value(metrics, "failures_total", stage="pick") == 1
    assert value(metrics, "tomograms", stage="pick", state="pending") == 2


def test_no_label_is_a_tomogram(metrics: RunMetrics) -> None:
    for event in (
        StageStarted(stage="pick", tomogram="very-own-name", blocks=4),
        TaskEnded(stage="pick", tomogram="very-own-name", message="very-own-name", worker="very-own-name:1"),
        StageSealed(stage="pick", tomogram="very-own-name"),
        UnitFailed(stage="pick", tomogram="very-own-name", reason="very-own-name"),
    ):  # fmt: skip
        metrics(event)
    with served(metrics.registry, "0") as url:
        assert "very-own-name" not in get(url)


def test_the_busy_share_is_time_in_tasks_over_time_there(metrics: RunMetrics, clock: Clock) -> None:
    for _ in range(10):
        clock.now += 1.0
        metrics.turn()
    metrics(TaskEnded(stage="pick", block=0, seconds=15.0))
    in_tasks = value(metrics, "task_seconds_total", engine="cpu", executor="dask")
    there = value(metrics, "worker_seconds_total", executor="dask")
    assert in_tasks is not None
    assert there is not None
    assert in_tasks / there == 15.0 / (2 * 10)
    assert value(metrics, "workers_busy", executor="dask") == 2  # three tasks, two workers
    assert value(metrics, "tasks_queued", engine="cpu") == 7


def test_looks_are_a_second_apart(clock: Clock) -> None:
    looks = []
    metrics = RunMetrics(clock=clock)
    metrics.watch(lambda: looks.append(clock.now) or Load(), {})  # type: ignore[func-returns-value]
    for _ in range(8):
        clock.now += 0.25
        metrics.turn()
    assert len(looks) == 1 + 2


def test_pauses_are_counted_once_each(clock: Clock) -> None:
    until = [0.0]
    metrics = RunMetrics(clock=clock)
    metrics.watch(lambda: Load(paused_until=until[0]), {})
    for now, end, paused in ((101, 0, 0), (102, 110, 1), (103, 110, 1), (115, 110, 0), (120, 140, 1)):
        clock.now, until[0] = now, end
        metrics.turn()
        assert value(metrics, "paused") == paused
    assert value(metrics, "pauses_total") == 2


def test_memory_is_the_largest_seen(metrics: RunMetrics) -> None:
    for peak, promise in ((10, 30), (20, 30), (5, 40)):
        metrics(TaskEnded(stage="pick", block=0, peak_bytes=peak, promised_bytes=promise))
    assert value(metrics, "worker_memory_peak_bytes", stage="pick") == 20
    assert value(metrics, "worker_memory_promised_bytes", stage="pick") == 40


def test_time_left_counts_tomograms_that_are_not_planned_yet(metrics: RunMetrics, clock: Clock) -> None:
    assert value(metrics, "stage_left_seconds", stage="pick") is None
    metrics(StageStarted(stage="pick", tomogram="t", blocks=10, voxels=1000))
    assert value(metrics, "stage_left_seconds", stage="pick") is None, "nothing is known yet"
    clock.now += 10.0
    metrics(TaskEnded(stage="pick", tomogram="t", block=0, voxels=500))
    # 500 of 1000 voxels in 10 s, and two more tomograms of 1000 each.
    assert value(metrics, "stage_left_seconds", stage="pick") == pytest.approx(50.0)


def test_a_scrape_over_loopback(metrics: RunMetrics) -> None:
    with served(metrics.registry, "0") as url:
        assert url.startswith("http://127.0.0.1:")
        text = get(url)
    assert "# HELP cryoscale_blocks_total" in text
    assert "process_resident_memory_bytes" in text
    assert 'run_id="20260101-000000-abcdef"' in text
    with pytest.raises(urllib.error.URLError):
        get(url)


def test_promtool_finds_nothing_to_say(metrics: RunMetrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    metrics(StageStarted(stage="pick", tomogram="t", blocks=1, voxels=10))
    for status in STATUSES:
        metrics(TaskEnded(stage="pick", block=0, status=status, voxels=3, peak_bytes=1, promised_bytes=2))
    with served(metrics.registry, "0") as url:
        text = get(url)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (done.stdout + done.stderr).strip()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("9090", Place("127.0.0.1", 9090)),
        (":9090", Place("127.0.0.1", 9090)),
        ("localhost:1", Place("localhost", 1)),
        ("[::1]:80", Place("::1", 80)),
        ("10.0.0.1:80", Place("10.0.0.1", 80)),
    ],
)
def test_places(text: str, place: Place) -> None:
    assert Place.of(text) == place
    assert place.is_loopback == (place.host != "10.0.0.1")


@pytest.mark.parametrize("text", ["", "x", "1:x", "65536", "-1", "127.0.0.1", "²"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--metrics"):
        Place.of(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "[::]", "some.host"])
def test_other_machines_may_not_ask_without_certificates(metrics: RunMetrics, host: str) -> None:
    with pytest.raises(ConfigurationError, match="certificates"), served(metrics.registry, f"{host}:0"):
        pass


def test_a_port_that_is_taken(metrics: RunMetrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"),
            served(metrics.registry, str(port)),
        ):
            pass


@pytest.fixture
def tls(metrics: RunMetrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Metrics over TLS, as on any other host, but on loopback; and the folder of certificates."""
    secrets = Secrets.create(tmp_path / "secrets")
    monkeypatch.setattr(Place, "is_loopback", property(lambda self: False))
    with served(metrics.registry, "127.0.0.1:0", secrets.folder) as url:
        yield url, secrets


def test_a_client_with_a_certificate_is_answered(tls: tuple[str, Secrets]) -> None:
    url, secrets = tls
    assert url.startswith("https://")
    assert "cryoscale_build_info" in get(url, secrets.tls_context())


def test_a_client_without_a_certificate_is_refused(tls: tuple[str, Secrets], tmp_path: Path) -> None:
    url, secrets = tls
    bare = ssl.create_default_context(cafile=str(secrets.folder / "ca.pem"))
    bare.check_hostname = False
    strangers = Secrets.create(tmp_path / "others").tls_context()
    strangers.verify_mode = ssl.CERT_NONE
    for context in (bare, strangers):
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            get(url, context)
    with pytest.raises((urllib.error.URLError, ConnectionError, OSError)):
        get(url.replace("https", "http"))
    assert "cryoscale_build_info" in get(url, secrets.tls_context()), "the others are answered still"


def test_clients_that_say_nothing_hold_nobody_up(tls: tuple[str, Secrets]) -> None:
    url, secrets = tls
    port = int(url.rsplit(":", 1)[1].partition("/")[0])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(AT_ONCE - 1)]
    try:
        assert "cryoscale_build_info" in get(url, secrets.tls_context())
    finally:
        for client in silent:
            client.close()
