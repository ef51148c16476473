"""What a job's workers have imported is what their next generation waits for."""

import shutil
from dataclasses import replace

import pytest
from builders import SCRIPTS, Home, Job

pytestmark = pytest.mark.timeout(120)


def test_a_training_that_compiles_nothing_imports_no_compiler(home: Home) -> None:
    home.path.mkdir(parents=True)
    shutil.copy(SCRIPTS / "imports.py", home.path)
    job = Job("eager", steps=60)
    config = job.config(hooks=[{"type": "imports:Imports"}])
    result = home.run(replace(job, trainer={"config": config}))
    assert result.code == 0, result.said
    assert result.final["result"]["metrics"]["compiler"] == "False"
