"""Relight's images are built once per content, and run as nobody in particular who can write nowhere."""

import pytest
from tests.testbed import Cluster
from tests.testbed.building import relight_image
from tests.testbed.images import Image

PROGRAM = "import os, {module}; print(os.getuid(), os.access('/', os.W_OK), os.access('/opt/app', os.W_OK))"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("target", "module"), [("operator", "relight_operator"), ("trainer", "relight_trainer.train")])
def test_an_image_is_built_once_and_runs(
    testbed: Cluster, namespace: str, relight_images: dict[str, Image], target: str, module: str
) -> None:
    image = relight_images[target]
    built = image.archive.stat().st_mtime_ns
    again = relight_image(target)
    assert again.archive.stat().st_mtime_ns == built or again != image  # else somebody edits the checkout meanwhile
    testbed.load_image(image)
    flag = f"--namespace={namespace}"
    run = ("run", flag, "probe", f"--image={image.reference}", "--restart=Never", "--image-pull-policy=IfNotPresent")
    testbed.kubectl(*run, "--command", "--", "python3", "-c", PROGRAM.format(module=module))
    testbed.kubectl("wait", flag, "pod/probe", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    assert testbed.kubectl("logs", flag, "probe").split() == ["10001", "False", "False"]
