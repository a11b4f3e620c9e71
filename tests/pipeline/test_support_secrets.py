"""What is never in a support bundle, and addresses that hold a secret."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryoscale.config import RunConfig, apply_settings, load_config
from cryoscale.config.urls import has_credentials
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError
from cryoscale.formats.inputs import expand_inputs
from cryoscale.pipeline import support
from cryoscale.pipeline.support import make_bundle
from cryoscale.runtime.log_sinks import segment_name
from cryoscale.runtime.redaction import SECRET_NAME, Redactor
from tests.pipeline.driving import bare_run
from tests.runtime.secret_shapes import SECRET, SHAPES

RUN_ID = "20260101-000000-abcdef"


@pytest.fixture(autouse=True)
def quick_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at devices, which takes seconds; `test_verbs` asks the real one."""
    monkeypatch.setattr(
        support, "_doctor", lambda: {"cryoscale": "x", "executable": "/home/alice/bin/python"}
    )


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
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_people_are_not_named_and_hosts_are(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", "node7: /home/alice/data/x.mrc, alice@example.org, sftp://alice@node8/x")
    make_bundle(run.folder.url, tmp_path / "b.zip")
    found = everything(tmp_path / "b.zip")
    assert b"alice" not in found
    assert b"node7" in found
    assert b"node8" in found


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
