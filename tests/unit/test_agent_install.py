"""The init container's copy of agent and client, used as an image of the user's own would use it."""

import subprocess
import sys
from pathlib import Path

from relight_agent.install import PACKAGES, install, main


def _isolated(folder: Path, code: str) -> str:
    """Runs `code` on this interpreter without site packages: there is nothing but the standard library and `folder`."""
    line = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"]
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_both_packages_are_copied_whole_and_without_caches(tmp_path):
    targets = install(tmp_path / "volume")

    assert [t.name for t in targets] == list(PACKAGES)
    for target in targets:
        source = Path(sys.modules["relight_agent"].__path__[0]).parent / target.name
        names = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        assert {p.relative_to(target) for p in target.rglob("*") if p.is_file()} == names
    assert {p.name for p in (tmp_path / "volume").iterdir()} == set(PACKAGES)


def test_the_copied_agent_runs_on_the_standard_library_alone(tmp_path):
    install(tmp_path)

    assert _isolated(tmp_path, "import relight_agent.agent as a; print(a.__file__)").startswith(str(tmp_path))


def test_what_an_earlier_try_left_is_replaced(tmp_path):
    stale = tmp_path / "relight_agent" / "stale.py"
    stale.parent.mkdir()
    stale.write_text("raise SystemExit(1)\n")

    install(tmp_path)

    assert not stale.exists()
    assert (tmp_path / "relight_agent" / "agent.py").is_file()


def test_a_folder_that_cannot_be_written_is_named_and_is_a_bad_configuration(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")

    assert main([str(file)]) == 64
    assert str(file) in capsys.readouterr().err


def test_without_a_folder_the_usage_is_said(capsys):
    assert main([]) == 64
    assert "usage: python -m relight_agent.install FOLDER" in capsys.readouterr().err
