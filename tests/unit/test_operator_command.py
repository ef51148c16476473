"""`python -m relight_operator` where there is no cluster."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from relight_operator.__main__ import main


@pytest.mark.parametrize("content", [None, "", "a: [", "kind: Config"])
def test_without_a_cluster_it_says_so_in_words(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    if content is not None:
        config.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(config))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    result = CliRunner().invoke(main, ["--trainer-image=trainer", "--coordinator=relight.svc"])
    assert result.exit_code == 1
    assert "no cluster" in result.output
    assert "KUBECONFIG" in result.output
