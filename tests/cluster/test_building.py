"""Images are built from a Dockerfile with this computer's pip settings, once per content."""

from pathlib import Path

import pytest
from tests.testbed import Cluster
from tests.testbed.building import build_image

DOCKERFILE = """ARG BASE
FROM ${BASE} AS probe
COPY hello.py /hello.py
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir click
USER 10001
ENTRYPOINT ["/venv/bin/python", "/hello.py"]
"""


@pytest.mark.timeout(300)
def test_an_image_is_built_with_pip_and_runs_and_is_built_once(
    testbed: Cluster, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "hello.py").write_text("import click, os; print(os.getuid(), click.__name__)\n")
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(DOCKERFILE)
    image = build_image("probe", dockerfile, context=tmp_path)
    built = image.archive.stat()
    again = build_image("probe", dockerfile, context=tmp_path)
    assert again == image
    assert image.archive.stat().st_mtime_ns == built.st_mtime_ns
    testbed.load_image(image)
    flag = f"--namespace={namespace}"
    testbed.kubectl(
        "run", flag, "probe", f"--image={image.reference}", "--restart=Never", "--image-pull-policy=IfNotPresent"
    )
    testbed.kubectl("wait", flag, "pod/probe", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    assert testbed.kubectl("logs", flag, "probe").split() == ["10001", "click"]
