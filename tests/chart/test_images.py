"""The Dockerfile, and what hands it this machine's pip configuration. Images themselves are built and run in tests/cluster."""

import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
from charting import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def images() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / ".ci/images.py"))


def stage(name: str) -> str:
    """The instructions of the stage `name`."""
    return re.split(r"^FROM .+ AS ", DOCKERFILE, flags=re.MULTILINE)[1:][stages().index(name)]


def stages() -> list[str]:
    return re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)


def test_hadolint_finds_nothing_to_say(hadolint: Path) -> None:
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(("target", "module"), [("operator", "relight_operator"), ("trainer", "relight_agent")])
def test_each_image_runs_its_program_as_nobody_in_particular(target: str, module: str) -> None:
    instructions = [line for line in stage(target).splitlines() if line and not line.startswith("#")]
    assert instructions[-2:] == ["USER 10001:10001", f'ENTRYPOINT ["python3", "-m", "{module}"]']


def test_everything_from_an_index_is_pinned() -> None:
    installs = re.findall(r"^ +pip install (.+?)(?:&&|$)", DOCKERFILE, flags=re.MULTILINE)
    assert installs
    assert all("-c /requirements/constraints.txt" in i or "--no-deps" in i for i in installs)


def test_the_context_holds_what_the_dockerfile_copies_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    seen = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        word
        for words in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, flags=re.MULTILINE)
        for word in words.split()[:-1]
    }
    assert "*" in lines
    assert copied == seen


def test_pip_is_told_what_it_is_told_here_the_environment_over_the_files(images: dict[str, Any]) -> None:
    listing = (
        "global.index-url='https://one/simple'\n"
        ":env:.index-url='https://two/simple'\n"
        "global.extra-index-url='https://a/simple\\nhttps://b/simple'\n"
        "install.user='true'\n"
        ":env:.config-file='/etc/pip.conf'\n"
    )
    written = images["as_pip_conf"](images["parse_pip_config"](listing))
    assert written == (
        "[global]\nindex-url = https://two/simple\nextra-index-url = https://a/simple https://b/simple\n"
    )


def test_local_files_that_pip_uses_are_mounted_those_beside_an_index_too(
    images: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "index/simple").mkdir(parents=True)
    (tmp_path / "cert.pem").write_text("")
    values = [
        f"file://{tmp_path}/index/simple https://elsewhere/simple",
        f"{tmp_path}/cert.pem",
        "/no/such/file",
        "180",
    ]
    assert images["local_paths"](values) == [f"{tmp_path}/cert.pem", f"{tmp_path}/index"]
