"""Support bundles of runs in any state, what is never in them; and what drives log and tell."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryoscale.config import RunConfig, apply_settings, load_config
from cryoscale.config.urls import has_credentials
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.formats.inputs import expand_inputs
from cryoscale.pipeline import logs, support
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.pipeline.logs import Question, follow, in_words, log_lines
from cryoscale.pipeline.support import make_bundle
from cryoscale.runtime import metrics as metrics_module
from cryoscale.runtime.events import Event, TaskEnded
from cryoscale.runtime.log_sinks import segment_name
from cryoscale.runtime.redaction import SECRET_NAME, Redactor, known_secrets
from tests.pipeline.driving import drive

RUN_ID = "20260101-000000-abcdef"


@pytest.fixture(autouse=True)
def quick_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at devices, which takes seconds; `test_verbs` asks the real one."""
    monkeypatch.setattr(
        support, "_doctor", lambda: {"cryoscale": "x", "executable": "/home/alice/bin/python"}
    )


def parts_of(place: Path) -> dict[str, str]:
    with zipfile.ZipFile(place) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


def bare_run(place: Path) -> Run:
    """A run folder that no driver has seen."""
    place.mkdir(parents=True)
    (place / "run.toml").write_text('[[inputs]]\nname = "t1"\npath = "/data/t1.mrc"\n')
    return Run.at(place)


# -- what is in it ------------------------------------------------------------------------------------------


def test_a_bundle_of_a_finished_run(finished_run: Run, tmp_path: Path) -> None:
    bundle = make_bundle(finished_run.folder.url, tmp_path / "b.zip")
    assert bundle.left_out == []
    parts = parts_of(tmp_path / "b.zip")
    assert set(parts) >= {
        "README.txt", "doctor.json", "environment.json", "run.toml", "status.json", "plan.json",
        "ledger.json", "engines.json", "files.txt", "models/encoder/model.toml",
        "models/segmenter/model.toml",
    }  # fmt: skip
    assert sum(name.startswith("logs/") for name in parts) == 2, "two drives made this run"
    status = json.loads(parts["status.json"])
    assert status["complete"]
    assert json.loads(parts["plan.json"])["stages"]["pick"]["tomograms"] == 2
    assert json.loads(parts["engines.json"])["drives"][0]["executor"] == "serial"
    assert "models/encoder/weights.safetensors" in parts["files.txt"]
    assert load_config(parts["run.toml"]).pick == finished_run.config.pick
    assert all(name in parts["README.txt"] for name in bundle.parts)
    assert (tmp_path / "b.zip").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["b.zip"]


def test_logs_of_the_last_drives(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    ids = [f"2026010{day}-000000-abcdef" for day in range(1, 5)]
    for run_id in ids:
        line = json.dumps({"event": "DriverStarted", "run": run_id, "level": "info"}).encode() + b"\n"
        run.folder.write_bytes(f"logs/{segment_name(run_id, 0)}", line)
        run.folder.write_bytes(f"logs/{segment_name(run_id, 1)}", b'{"event": "Message"}\n{"torn')
    make_bundle(run.folder.url, tmp_path / "b.zip", last=2)
    parts = parts_of(tmp_path / "b.zip")
    assert [n for n in parts if n.startswith("logs/")] == [f"logs/events-{i}.jsonl" for i in ids[2:]]
    lines = [json.loads(line)["event"] for line in parts[f"logs/events-{ids[3]}.jsonl"].splitlines()]
    assert lines == ["DriverStarted", "Message", "TornLine"]
    make_bundle(run.folder.url, tmp_path / "none.zip", last=0)
    assert not [n for n in parts_of(tmp_path / "none.zip") if n.startswith("logs/")]


def test_a_long_log_keeps_its_beginning_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "LOG_BYTES", 1000)
    run = bare_run(tmp_path / "run")
    for segment in range(5):
        lines = "".join(json.dumps({"n": 100 * segment + n, "dask": "x"}) + "\n" for n in range(100))
        run.folder.write_bytes(f"logs/{segment_name(RUN_ID, segment)}", lines.encode())
    make_bundle(run.folder.url, tmp_path / "b.zip")
    lines = [json.loads(x) for x in parts_of(tmp_path / "b.zip")[f"logs/events-{RUN_ID}.jsonl"].splitlines()]
    assert lines[0]["n"] == 0
    assert lines[1]["event"] == "LinesLeftOut"
    assert [x["n"] for x in lines[2:]] == list(range(500 - len(lines) + 2, 500))


def test_many_files_are_counted(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    (tmp_path / "run" / "picks").mkdir()
    for number in range(100):
        (tmp_path / "run" / "picks" / f"{number:03}.parquet").write_bytes(b"12345")
    make_bundle(run.folder.url, tmp_path / "b.zip")
    text = parts_of(tmp_path / "b.zip")["files.txt"]
    assert "picks/  100 files, 500 bytes" in text
    assert "picks/039.parquet" in text
    assert "picks/040.parquet" not in text
    assert "and 60 more" in text


def test_units_that_are_done_are_counted_only(finished_run: Run) -> None:
    status = support._trimmed(support._status(finished_run))
    assert all(stage["units"] == [] for stage in status["stages"])
    assert all(stage["units_left_out"] for stage in status["stages"])


# -- runs in any state --------------------------------------------------------------------------------------


def test_a_broken_run(copied_run: Run, tmp_path: Path) -> None:
    place = Path(copied_run.folder.url)
    (place / "run.toml").write_text("[pick\nthreshold = 3 # hunter2-hunter2\n")
    (place / "models" / "encoder" / "model.toml").write_bytes(b"\xff\xfe")
    (place / "ledger" / "driver.json").write_text("{torn")
    bundle = make_bundle(str(place), tmp_path / "b.zip")
    parts = parts_of(tmp_path / "b.zip")
    assert "no valid TOML" in parts["run.toml"]
    assert "files.txt" in parts
    assert {text.partition(":")[0] for text in bundle.left_out} >= {
        "status.json",
        "models/encoder/model.toml",
    }
    assert all(text in parts["README.txt"] for text in bundle.left_out)


def test_a_run_without_run_toml(tmp_path: Path) -> None:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    bundle = make_bundle(str(tmp_path / "run"), tmp_path / "b.zip")
    assert any(text.startswith("run.toml: FileNotFoundError") for text in bundle.left_out)


def test_a_run_that_is_going_on(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run()
    made: list[support.Bundle] = []

    def look(event: Event) -> None:
        if isinstance(event, TaskEnded) and event.stage == "pick" and not made:
            made.append(make_bundle(run.folder.url, tmp_path / "b.zip"))

    run_pipeline(run, Options(executor="serial", until="pick"), listeners=(look,))
    assert made[0].left_out == []
    parts = parts_of(tmp_path / "b.zip")
    assert json.loads(parts["status.json"])["driver"]["alive"]
    assert json.loads(parts["engines.json"])["lock"]["pid"] == os.getpid()


def test_nothing_in_the_run_changes(copied_run: Run, tmp_path: Path) -> None:
    place = Path(copied_run.folder.url)

    def tree() -> dict[str, Any]:
        return {str(p): (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in place.rglob("*")}

    before = tree()
    make_bundle(str(place), tmp_path / "b.zip")
    assert tree() == before


@pytest.fixture
def bucket() -> Iterator[str]:
    """A place in an object store that lives in memory."""
    store = fsspec.filesystem("memory")
    yield "memory://bucket"
    if store.exists("/bucket"):
        store.rm("/bucket", recursive=True)


def test_a_run_on_an_object_store(finished_run: Run, bucket: str, tmp_path: Path) -> None:
    fsspec.filesystem("memory").put(finished_run.folder.url + "/", "/bucket/run/", recursive=True)
    bundle = make_bundle(f"{bucket}/run", tmp_path / "b.zip")
    assert bundle.left_out == []
    parts = parts_of(tmp_path / "b.zip")
    assert json.loads(parts["status.json"])["complete"]
    assert "models/encoder/weights.safetensors" in parts["files.txt"]
    assert sum(name.startswith("logs/") for name in parts) == 2


def test_a_target_that_is_there_or_cannot_be(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    (tmp_path / "b.zip").write_bytes(b"mine")
    with pytest.raises(ConfigurationError, match="exists"):
        make_bundle(run.folder.url, tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == b"mine"
    with pytest.raises(ConfigurationError, match="cannot be written"):
        make_bundle(run.folder.url, tmp_path / "nowhere" / "b.zip")
    with pytest.raises(StateError, match="nothing at"):
        make_bundle(str(tmp_path / "no-run"), tmp_path / "c.zip")


# -- what is never in it ------------------------------------------------------------------------------------

SECRET = st.text("abcdefABCDEF0123456789+/=_.~!$-", min_size=12, max_size=44).map(lambda text: "q9Z" + text)
SHAPES: dict[str, Callable[[str], str]] = {
    "url": lambda s: f"cannot open s3://AKIAIOSFODNN7EXAMPLE:{s}@bucket/run: denied",
    "nested url": lambda s: f"simplecache::https://me:{s}@host:8080/a?b=1 failed",
    "query": lambda s: f"GET https://host/key?X-Amz-Credential=x&X-Amz-Signature={s} gave 403",
    "sas": lambda s: f"https://account.blob.core.windows.net/c/x.mrc?sv=2024&sig={s}",
    "bearer": lambda s: f"sent header Authorization: Bearer {s}",
    "bearer alone": lambda s: f"bearer {s} was refused",
    "cookie": lambda s: f"Set-Cookie: session={s}",
    "api header": lambda s: f"{{'X-Api-Key': '{s}'}}",
    "storage options": lambda s: f"S3FileSystem(**{{'key': '{s}', 'secret': '{s}', 'token': \"{s}\"}})",
    "json": lambda s: json.dumps({"aws_secret_access_key": s, "password": s}),
    "json in json": lambda s: json.dumps({"a": json.dumps({"secret": s, "b": json.dumps({"token": s})})}),
    "csv": lambda s: f'1,"{{""password"": ""{s}"", ""key"": ""{s}""}}"',
    "assignment": lambda s: f"AWS_SECRET_ACCESS_KEY={s} RAY_AUTH_TOKEN={s}",
    "ini": lambda s: f"[default]\naws_session_token = {s}\n",
    "yaml": lambda s: f"client_secret: {s}\npasswd: {s}",
    "option": lambda s: f"ray start --token {s} --password={s}",
    "pem": lambda s: f"-----BEGIN PRIVATE KEY-----\n{s}\n{s}\n-----END PRIVATE KEY-----",
    "torn pem": lambda s: f"-----BEGIN EC PRIVATE KEY-----\n{s}",
}  # fmt: skip


def plant(place: Path, text: str) -> Run:
    """Write a run with a text in every place where something may write one."""
    run = bare_run(place)
    flat = text.replace("\n", " ")
    quoted = json.dumps(text)
    (place / "run.toml").write_text(
        f'# {flat}\n[run]\nworking_level = 0 # {flat}\nunknown = {quoted}\n[[inputs]]\nname = "t1"\n'
        f"path = {quoted}\n[storage]\noptions = {quoted}\n"
    )
    run.write_failures([{"stage": "pick", "tomogram": "t1", "block": 3, "reason": text}])
    record = {"level": "error", "event": "TaskEnded", "message": text, "traceback": text, "log": [text]}
    (place / "logs").mkdir()
    (place / "logs" / segment_name(RUN_ID, 0)).write_text(
        json.dumps({"event": "DriverStarted", "dask": text, text: 1})
        + "\n"
        + json.dumps(record)
        + "\n"
        + flat
    )
    unit = place / "ledger" / "units" / "pick" / "t1" / "0123456789abcdef"
    unit.mkdir(parents=True)
    (unit / "failed.json").write_text(json.dumps({"reason": text, "finished": 1.0}))
    (unit / "plan.json").write_text(json.dumps({"plan": text, "blocks": 3, "voxels": 9, "started": 1.0}))
    (place / "ledger" / "refits.json").write_text(json.dumps({"cluster": {"space": text}}))
    (place / "ledger" / "driver.json").write_text(
        json.dumps({"host": "node7", "pid": 1, "heartbeat": 1.0, "begun": text})
    )
    (place / "models" / "encoder").mkdir(parents=True)
    (place / "models" / "encoder" / "model.toml").write_text(f"# {flat}\nweights = {quoted}\n")
    (place / "models" / "encoder" / "progress.json").write_text(json.dumps({"where": text}))
    if "/" not in flat:
        (place / flat[:200]).write_bytes(b"")
    return run


def everything(place: Path) -> bytes:
    """Every byte of a bundle, packed and unpacked, with its names."""
    with zipfile.ZipFile(place) as archive:
        inside = [name.encode() + b"\n" + archive.read(name) for name in archive.namelist()]
    return b"\n".join([place.read_bytes(), *inside])


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=SECRET)
def test_no_planted_secret_is_in_any_byte(tmp_path: Path, shape: str, secret: str) -> None:
    for old in tmp_path.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    run = plant(tmp_path / "run", SHAPES[shape](secret))
    bundle = make_bundle(run.folder.url, tmp_path / "b.zip")
    found = everything(tmp_path / "b.zip")
    assert secret.encode() not in found
    assert json.dumps(secret)[1:-1].encode() not in found
    assert "failures.csv" in bundle.parts, "the test looks at something"
    assert any(name.startswith("logs/") for name in bundle.parts)
    assert secret not in " ".join(bundle.left_out)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    secret=SECRET, name=st.sampled_from(["DB_PASSWORD", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "X_KEY"])
)
def test_what_the_environment_keeps_secret_is_found_anywhere(tmp_path: Path, secret: str, name: str) -> None:
    for old in tmp_path.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    run = plant(tmp_path / "run", f"the word is {secret}, and nothing says so")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, secret)
        patch.setenv("OMP_NUM_THREADS", secret)
        patch.setenv("CRYOSCALE_ANYTHING", secret)
        patch.setenv("SOME_VARIABLE", secret)
        make_bundle(run.folder.url, tmp_path / "b.zip")
    assert secret.encode() not in everything(tmp_path / "b.zip")


def test_the_secrets_of_the_clusters_are_found_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "ray-token").write_text("c0ffee-token-of-ray\n")
    lines = ["first-line-of-the-key", "second-line-of-the-key"]
    (folder / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\n" + "\n".join(lines) + "\n-----END")
    run = plant(tmp_path / "run", f"saw {lines[1]} and c0ffee-token-of-ray and {lines[0]}")
    make_bundle(run.folder.url, tmp_path / "b.zip", secrets=str(folder))
    found = everything(tmp_path / "b.zip")
    assert not [text for text in (*lines, "c0ffee-token-of-ray") if text.encode() in found]


def test_secrets_in_files_of_clients_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_secret_access_key = from-a-file\n")
    (tmp_path / ".config" / "fsspec").mkdir(parents=True)
    (tmp_path / ".config" / "fsspec" / "s3.json").write_text(
        '{"s3": {"key": "fs-key", "secret": "fs secret"}}'
    )
    (tmp_path / "token").write_text("token-in-a-file\n")
    for name, value in {
        "HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_AUTH_MODE": "token",
        "FSSPEC_S3": '{"secret": "from-options"}', "HTTPS_PROXY": "http://me:proxy-password@proxy:3128",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    known = known_secrets()
    assert known >= {
        "from-a-file", "fs-key", "fs secret", "token-in-a-file", "from-options", "proxy-password",
    }  # fmt: skip
    assert "token" not in known


def test_people_are_not_named_and_hosts_are(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", "node7: /home/alice/data/x.mrc, alice@example.org, sftp://alice@node8/x")
    make_bundle(run.folder.url, tmp_path / "b.zip")
    found = everything(tmp_path / "b.zip")
    assert b"alice" not in found
    assert b"node7" in found
    assert b"node8" in found


def test_what_is_needed_stays() -> None:
    text = "pick of t1, 3: /data/recon/t1.mrc at tls://10.0.0.7:8786, key 0123456789abcdef, 1.5 voxels/s"
    assert Redactor(strict=True).text(text) == text


def test_a_secret_with_quotes_in_it() -> None:
    for text in ('{"password": "ab\\"cdefgh"}', "{'secret': 'ab\\'cdefgh'}"):
        assert "cdefgh" not in Redactor().text(text)


def test_the_same_secret_gets_the_same_mark_within_one_bundle() -> None:
    redactor, other = Redactor(["hunter2-hunter2"]), Redactor(["hunter2-hunter2"])
    assert redactor.text("hunter2-hunter2") == redactor.text("hunter2-hunter2")
    assert redactor.text("hunter2-hunter2") != other.text("hunter2-hunter2")


def test_no_key_of_run_toml_looks_like_a_secret() -> None:
    def keys(model: Any) -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield name
            if (inner := support._model_in(field.annotation)) is not None:
                yield from keys(inner)

    assert not [key for key in keys(RunConfig) if SECRET_NAME.search(key)]


# -- addresses with credentials -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIAX:hunter2@bucket/run", "s3://AKIAX:hun/ter2+x@bucket/run", "sftp://me:hunter2@host/x",
        "simplecache::s3://AKIAX:hunter2@bucket/x", "https://host/x?X-Amz-Signature=hunter2",
        "https://host/x?a=1&sig=hunter2",
    ],
)  # fmt: skip
def test_an_address_with_credentials_is_refused_and_not_shown(address: str) -> None:
    assert has_credentials(address)
    attempts: list[Callable[[], Any]] = [
        lambda: Run.at(address),
        lambda: expand_inputs([address]),
        lambda: apply_settings(RunConfig(), [f"pick.mask={address}"]),
        lambda: load_config(f'[[inputs]]\nname = "t"\npath = "{address}"\n'),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigurationError, match="password") as refused:
            attempt()
        assert "ter2" not in str(refused.value)
    assert "ter2" not in Redactor().text(address), "and where it gets through, it is taken out"


@pytest.mark.parametrize(
    "address",
    ["s3://bucket/run", "abfs://container@account.dfs.core.windows.net/x", "sftp://me@host/x", "/data/a:b@c",
     "http://host:8080/a@v2", "https://host/x?page=2", "memory://x"],
)  # fmt: skip
def test_other_addresses_are_taken(address: str) -> None:
    assert not has_credentials(address)
    Run.at(address)


# -- what drives log and tell -------------------------------------------------------------------------------


def test_a_drive_logs_its_stages(finished_run: Run) -> None:
    lines = list(log_lines(finished_run, Question()))
    assert {line["event"] for line in lines} >= {
        "DriverStarted",
        "StageStarted",
        "BlocksEnded",
        "DriverEnded",
    }
    assert len({line["run"] for line in lines}) == 2
    picked = list(log_lines(finished_run, Question("pick", "alpha")))
    assert [line["event"] for line in picked] == ["StageStarted", "BlocksEnded", "StageSealed"]
    assert picked[1]["done"] + picked[1]["empty"] == picked[0]["blocks"]
    assert list(log_lines(finished_run, Question(), last=0)) == []


def test_a_failure_is_logged_with_its_traceback(make_run: Callable[..., Run], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mrc"
    broken.write_bytes(b"no MRC file")
    run = make_run(sources=[broken])
    assert drive(run, until="ingest").failures
    found = list(log_lines(run, Question(level="warning")))
    assert found[0]["event"] == "TaskEnded"
    assert found[0]["kind"] == "data"
    assert "Traceback" in found[0]["traceback"]
    assert found[-1]["event"] == "UnitFailed"
    assert "Traceback" in in_words(found[0])


def test_what_is_logged_later_is_followed(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    (tmp_path / "run" / "logs").mkdir()
    first, second, later = (
        tmp_path / "run" / "logs" / name
        for name in (
            segment_name(RUN_ID, 0),
            segment_name(RUN_ID, 1),
            segment_name("20260102-000000-abcdef", 0),
        )
    )

    def line(number: int) -> bytes:
        return json.dumps({"level": "info", "n": number}).encode() + b"\n"

    first.write_bytes(line(1) + line(2)[:5])
    steps: list[Callable[[], object]] = [
        lambda: first.write_bytes(line(1) + line(2)),
        lambda: (first.write_bytes(line(1) + line(2) + line(3)), second.write_bytes(line(4))),
        lambda: (second.write_bytes(line(4) + line(5)), later.write_bytes(line(6))),
    ]

    def pause(seconds: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    seen: list[int] = []
    lines = follow(run, Question(), pause=pause)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            seen.append(next(lines)["n"])
    assert seen == [1, 2, 3, 4, 5, 6]


def test_a_drive_on_an_object_store_logs_too(bucket: str, small_sources: list[Path]) -> None:
    from cryoscale.testing.phantoms import small_run

    run = small_run(Path("run"), small_sources)
    config = run.config
    shutil.rmtree("run")
    remote = Run.at(f"{bucket}/run")
    remote.save_config(config)
    assert not drive(remote, until="identify").failures
    lines = list(log_lines(remote, Question()))
    assert lines[0]["event"] == "DriverStarted"
    assert lines[-1]["event"] == "DriverEnded"
    assert len(logs.drives(remote, 5)) == 1


def test_a_drive_tells_prometheus(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "LOOK_S", 0.0)
    run = make_run()
    told: list[str] = []

    def ask(event: Event) -> None:
        text = getattr(event, "text", "")
        if text.startswith("metrics for Prometheus at "):
            told.append(text.rpartition(" ")[2])
        if isinstance(event, TaskEnded) and event.stage == "pick" and len(told) == 1:
            with urllib.request.urlopen(told[0], timeout=10) as answer:
                told.append(answer.read().decode())

    result = run_pipeline(run, Options(executor="serial", metrics="0", until="pick"), listeners=(ask,))
    assert not result.failures
    text = told[1]
    assert 'cryoscale_blocks_total{stage="ingest",status="done"}' in text
    assert 'cryoscale_tomograms{stage="pick",state="pending"}' in text
    assert 'cryoscale_workers{executor="serial"} 1.0' in text
    assert 'cryoscale_tasks_in_flight{engine="cpu"}' in text
    assert "alpha" not in text


def test_a_place_for_metrics_that_cannot_be_stops_before_any_work(make_run: Callable[..., Run]) -> None:
    run = make_run()
    for place in ("0.0.0.0:0", "nonsense"):
        with pytest.raises(ConfigurationError, match="--metrics"):
            drive(run, metrics=place)
    assert not run.folder.exists("ledger")
