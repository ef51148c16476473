"""The commands that need torch: listed without it, imported only when used, missed in words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import relight_trainer

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None\n"
MAIN = "from relight_operator.cli.main import main; sys.argv[0] = 'relight'; main()\n"
VERBS = sorted(f.stem for f in (Path(relight_trainer.__file__).parent / "commands").glob("[!_]*.py"))


def relight(*arguments, env=None):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + MAIN, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=env,
    )


def test_the_listing_and_completion_name_every_command_without_torch() -> None:
    listed = relight("--help")

    assert listed.returncode == 0, listed.stderr
    for verb in (*VERBS, "run", "validate"):
        [line] = [line for line in listed.stdout.splitlines() if line.startswith(f"  {verb} ")]
        assert line.removeprefix(f"  {verb}").strip(), "a short help"
    completed = relight(env={"_RELIGHT_COMPLETE": "bash_complete", "COMP_WORDS": "relight in", "COMP_CWORD": "1"})
    assert completed.stdout.splitlines() == ["plain,inspect"]


def test_what_is_not_installed_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")

    done = relight("inspect", str(tmp_path / "x"))

    assert (done.returncode, done.stdout) == (69, "")
    assert (
        done.stderr == "error: this needs numpy, which is not installed here: pip install 'relight[operator,trainer]'\n"
    )


def test_a_check_goes_on_where_memory_cannot_be_foretold(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {type: digits_cnn}\n")

    done = relight("validate", str(tmp_path / "config.yaml"), "--limit", "80GiB")

    assert done.returncode == 0, done.stderr
    assert "a valid trainer configuration" in done.stdout
    assert "not checked here: memory: foretelling it needs " in done.stdout
    assert "which is not installed here" in done.stdout


def test_a_wrong_command_gets_the_nearest_right_one() -> None:
    done = relight("inspekt")

    assert done.returncode == 64
    assert 'no such command: "inspekt". Did you mean "inspect"?' in done.stderr


@pytest.mark.parametrize("verb", ["inspect", "lr", "run"])
def test_examples_in_help_have_lines_of_their_own(verb: str) -> None:
    lines = relight(verb, "--help").stdout.splitlines()

    assert len([line for line in lines if line.startswith(f"    relight {verb} ")]) > 1
    assert not [line for line in lines if "\\b" in line]


def test_a_place_that_cannot_be_is_named_without_an_errno(tmp_path: Path) -> None:
    job = Path(__file__).parents[2] / "examples/digits.yaml"
    (tmp_path / "file").touch()

    done = relight("run", str(job), "--state-dir", str(tmp_path / "file/below"))

    assert (done.returncode, done.stderr) == (74, f"error: {tmp_path}/file/below: Not a directory\n")


def test_a_reader_that_has_gone_is_told_from_every_other_end() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH + MAIN, "crd"], stdout=gone, stderr=subprocess.PIPE, check=False
        )

    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("verb", ["inspect", "diff", "export"])
def test_help_teaches_by_example(verb: str) -> None:
    done = relight(verb, "--help")

    assert done.returncode == 0
    assert f"  relight {verb} " in done.stdout
    assert "Exit codes: 0" in done.stdout
