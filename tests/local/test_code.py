"""examples/git_code.yaml as a user would run it: the code is in a repository behind a token."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from builders import Home, Job, kill
from tests.git_server import TOKEN, new_repository, push, serving

pytestmark = pytest.mark.timeout(180)
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_job_runs_the_commit_of_its_first_start_after_a_kill_too(tmp_path: Path, home: Home) -> None:
    repository = new_repository(tmp_path / "served" / "training.git")
    commit = push(
        repository, "own_script.py", (EXAMPLES / "own_script.py").read_text().replace("epochs=20", "epochs=4")
    )
    secret = tmp_path / "secret"
    secret.mkdir()
    shutil.copy(EXAMPLES / "git_code.yaml", tmp_path)
    spec = yaml.safe_load((EXAMPLES / "git_code.yaml").read_text())["spec"]
    with serving(repository.parent, tls=True) as server:
        for name, text in (("username", "me"), ("password", TOKEN), ("ca.crt", server.authority)):
            (secret / name).write_text(text)
        spec["code"]["git"]["url"] = f"https://localhost:{server.server_port}/training.git"
        run = home.start(Job("git-code", spec=spec), "--secret", f"git-cred={secret}", kill(1, at=10))
        run.until(lambda s: s.get("code"), "the commit is known")
        push(repository, "own_script.py", "raise SystemExit('not the code that this job began with')")
        result = run.wait()
    assert result.code == 0, result.said
    assert result.final["code"] == {"commit": commit}
    assert result.restarts["byCause"] == {"MachineLost": 1}
    assert f"code at commit {commit}" in result.said
    [*_, newest] = sorted(home.state.glob("volumes/*/default/*/step-*"))
    assert json.loads((newest / "manifest.json").read_text())["versions"]["code"] == commit
    assert not any(TOKEN in seen for seen in server.seen)
    files = [file for file in (*home.state.rglob("*"), *home.path.glob("*-*")) if file.is_file()]
    assert [file for file in files if TOKEN.encode() in file.read_bytes()] == []
