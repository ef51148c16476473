"""What the documents say is what the code does."""

import re
from pathlib import Path

import pytest
import yaml

from relight_agent.exits import CAUSE_CLASS, EXITS
from relight_operator.api.validate import load_job, parse_job

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rows(page: Path, columns: int) -> list[list[str]]:
    """The cells of every table row of that width, heads and rules left out."""
    lines = [
        [c.strip() for c in line.strip("|").split("|")] for line in page.read_text().splitlines() if line[:1] == "|"
    ]
    return [
        cells
        for cells in lines
        if len(cells) == columns and cells[0] not in ("code", "cause") and set(cells[0]) != {"-"}
    ]


def test_the_table_of_exit_codes_is_the_codes() -> None:
    said = [(int(code), cause, klass) for code, cause, klass, _ in rows(ROOT / "docs/exit-codes.md", 4)]

    assert said == [(int(code), str(e.cause), str(e.klass)) for code, e in EXITS.items()]


def test_every_cause_without_a_code_is_explained() -> None:
    coded = {e.cause for e in EXITS.values()}

    said = {cause: klass for cause, klass, _ in rows(ROOT / "docs/exit-codes.md", 3)}

    assert said == {str(c): str(k) for c, k in CAUSE_CLASS.items() if c not in coded}


JOBS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL))
    if "kind: TrainingJob" in block
]


@pytest.mark.parametrize("text", JOBS)
def test_a_job_in_the_documents_is_valid(text: str) -> None:
    assert parse_job(yaml.safe_load(text)).spec.nodes >= 1


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_an_example_is_valid(file: Path) -> None:
    if "kind: TrainingJob" in file.read_text():
        assert load_job(file).spec.nodes >= 1


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    named = set(re.findall(r"^\$ make ([a-z-]+)", page.read_text(), re.MULTILINE))

    assert named <= targets
