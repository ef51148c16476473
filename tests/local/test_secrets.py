"""A secret that is planted in each way: it is in the workers' environment, and in nothing that is written or shown."""

import hashlib
import json
from pathlib import Path

import pytest
from builders import SCRIPTS, Home, Job, command_line, environment_of, script

PLANTED = {"valueFrom": "planted-1-f00d", "envFrom": "planted-2-beef", "config map": "planted-3-cafe"}
pytestmark = pytest.mark.timeout(120)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def holding(folder: Path, planted: str) -> list[Path]:
    """The files below `folder` with the text in them."""
    return [p for p in folder.rglob("*") if p.is_file() and planted.encode() in p.read_bytes()]


def test_a_planted_secret_is_in_the_workers_environment_alone(home: Home, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    (secrets / "api").mkdir(parents=True)
    (secrets / "api" / "token").write_text(PLANTED["valueFrom"])
    (secrets / "all.env").write_text(f"PASSWORD={PLANTED['envFrom']}\nRANK=99\n")
    (secrets / "settings.env").write_text(f"mode={PLANTED['config map']}\n")
    trainer = script("told_secrets.py", tmp_path / "told", "TOKEN", "DB_PASSWORD", "mode", "MEMBER")
    trainer["env"] = [
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "api", "key": "token"}}},
        {"name": "MEMBER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]
    trainer["envFrom"] = [
        {"prefix": "DB_", "secretRef": {"name": "all"}},
        {"secretRef": {"name": "all"}},
        {"configMapRef": {"name": "settings"}},
    ]
    job = Job(trainer=trainer)
    given = ("--secret", f"api={secrets / 'api'}", "--secret", f"all={secrets / 'all.env'}")
    run = home.start(job, *given, "--config-map", f"settings={secrets / 'settings.env'}", output="text")
    shown, lines = set[str](), list[str]()
    while run.process.poll() is None:
        for pid, environment in home.processes().items():
            shown |= {name for name, value in environment.items() if value in PLANTED.values()}
            lines.append(command_line(pid))
        lines += [*environment_of(run.process.pid).values(), command_line(run.process.pid)]
    result = run.wait()
    assert result.code == 0, result.said
    for rank in range(2):
        assert json.loads((tmp_path / f"told-{rank}").read_text()) == {
            "TOKEN": digest(PLANTED["valueFrom"]),
            "DB_PASSWORD": digest(PLANTED["envFrom"]),
            "mode": digest(PLANTED["config map"]),
            "MEMBER": digest(f"small-{rank}-0"),
        }
    assert shown == {"TOKEN", "DB_PASSWORD", "PASSWORD", "mode"}, "the sampling sees the members"
    for planted in PLANTED.values():
        assert holding(home.path, planted) == []
        assert not any(planted in line for line in lines)
        assert planted not in result.said


def test_a_secret_that_is_not_given_is_named_before_anything_is_made(home: Home) -> None:
    trainer = script("told_secrets.py", "told", "TOKEN")
    trainer["env"] = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "api", "key": "token"}}}]
    result = home.run(Job(trainer=trainer), output="text")
    assert result.code == 64
    said = result.said + "".join(p.read_text() for p in home.path.glob("err-*"))
    assert (
        "spec.trainer.env[0].valueFrom.secretKeyRef: without a cluster there are no Secrets: add --secret api=PATH"
        in said
    )
    assert not home.state.exists()


@pytest.mark.parametrize("key", ["the right one", "a wrong one"])
def test_the_store_s_keys_reach_its_library_and_nothing_that_is_written(home: Home, tmp_path: Path, key: str) -> None:
    secret = tmp_path / "s3"
    secret.mkdir()
    for name, text in (("key", "planted-key-4"), ("secret", "planted/secret+5\n"), ("endpoint_url", "http://store")):
        (secret / name).write_text(text)
    right = "planted-key-4 planted/secret+5" if key == "the right one" else "others"
    store = {
        "PYTHONPATH": str(SCRIPTS / "store"),
        "STORE_ROOT": str(tmp_path / "store"),
        "STORE_KEY_DIGEST": digest(right),
    }
    trainer = script("told_secrets.py", tmp_path / "told", "RELIGHT_STORAGE_key", env=store)
    where = {"uri": "s3://bucket/runs", "secretRef": {"name": "s3"}, "interval": {"steps": 5}}
    job = Job(nodes=1, trainer=trainer).with_spec(checkpoint=where, retry={"failures": 0})
    result = home.run(job, "--secret", f"s3={secret}")
    if key == "the right one":
        assert result.code == 0, result.said
        assert list((tmp_path / "store").rglob("step-*")), "checkpoints are in the store"
    else:
        assert result.code == 74, result.said
        assert "InvalidAccessKeyId: ('***', '***', 'http://store')" in result.final["lastFailure"]["message"]
    for planted in ("planted-key-4", "planted/secret+5"):
        assert holding(home.path, planted) == []
        assert planted not in result.said + result.stdout
