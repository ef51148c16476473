"""What a person meant and what stands there: letters that look alike, keys that YAML reads as booleans, names given twice."""

from pathlib import Path
from typing import Any

import pytest

from relight_operator.api.validate import load_job_text
from relight_operator.errors import InvalidJob
from relight_operator.local.environment import paths_of
from relight_trainer import code_source
from relight_trainer.config import BadConfig, parse
from relight_trainer.config_file import load_text
from relight_trainer.data.errors import BadData, one_of
from relight_trainer.data.paths import existing
from relight_trainer.yaml_loader import YamlError, load_documents

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"m\u043edel": {"type": "mlp"}}, "U+043E CYRILLIC SMALL LETTER O"),
        ({"train": {"durati\u03bfn": "1ep"}}, "U+03BF GREEK SMALL LETTER OMICRON"),
        ({"optimizer": {"type": "sg\u0501"}}, "U+0501 CYRILLIC SMALL LETTER KOMI DE"),
        ({"optimizer": {"type": "\uff53gd"}}, "U+FF53 FULLWIDTH LATIN SMALL LETTER S"),
        ({"train": {"precision": "b\u0192" + "16"}}, "U+0192 LATIN SMALL LETTER F WITH HOOK"),
    ],
)
def test_a_letter_that_only_looks_like_the_right_one_is_named(config: dict[str, Any], text: str) -> None:
    with pytest.raises(BadConfig) as raised:
        parse(config)
    assert "did you mean" in str(raised.value)
    assert f"(found {text})" in str(raised.value)


def test_right_letters_are_not_named() -> None:
    with pytest.raises(BadConfig) as raised:
        parse({"modle": {"type": "mlp"}})
    assert 'did you mean "model"?' in str(raised.value)
    assert "U+" not in str(raised.value)


def test_two_spellings_of_one_umlaut_are_told_apart() -> None:
    composed, combined = "gr\u00f6\u00dfe", "gro\u0308\u00dfe"
    for found, name, text in (
        (composed, combined, "U+00F6 LATIN SMALL LETTER O WITH DIAERESIS"),
        (combined, composed, "U+0308 COMBINING DIAERESIS"),
    ):
        assert str(one_of(found, [name], "data.train")).endswith(f'did you mean "{name}"? (found {text})')


@pytest.mark.parametrize("key", ["n", "N", "y", "no", "yes", "on", "off", "Off"])
def test_a_key_that_yaml_reads_as_a_boolean_is_refused_by_its_letter(key: str) -> None:
    text = f"data:\n  type: synthetic\n  {key}: 512\n".encode()
    with pytest.raises(BadConfig) as raised:
        load_text(text)
    read = "false" if key.lower() in ("n", "no", "off") else "true"
    assert f'YAML reads this key as {read}; found {key}; allowed: "{key}", in quotes' in str(raised.value)
    with pytest.raises(YamlError) as problem:
        load_documents(text)
    assert problem.value.problem.line == 3
    assert load_documents(f'"{key}": 1\ntrue: 2\nfalse: 3\n'.encode())[0].value == {key: 1, "true": 2, "false": 3}


def job(env: str) -> bytes:
    return f"""
apiVersion: relight.dev/v1alpha1
kind: TrainingJob
metadata: {{name: a}}
spec:
  nodes: 1
  trainer:
    script: [a.py]
    env: {env}
""".encode()


def test_an_environment_variable_is_given_once() -> None:
    load_job_text(job("[{name: A, value: '1'}, {name: a, value: '2'}]"))
    with pytest.raises(InvalidJob) as raised:
        load_job_text(job("[{name: A, value: '1'}, {name: B, value: '2'}, {name: A, value: '3'}]"))
    assert 'spec.trainer.env[2].name: given twice; found "A"; allowed: each name once' in str(raised.value)


def test_a_folder_that_is_not_there_is_told_by_what_exists_of_its_path(tmp_path: Path) -> None:
    with pytest.raises(BadData) as raised:
        existing("/nothere-at-all/imagenet/train", "data.root")
    assert (
        str(raised.value)
        == "data.root: there is no /nothere-at-all/imagenet/train: / exists, and there is no /nothere-at-all"
    )
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(BadData, match=rf'there is no {tmp_path}/imagnet; did you mean "imagenet"\?$'):
        existing(tmp_path / "imagnet" / "train", "data.root")
    with pytest.raises(BadData, match=rf"data\.train: {tmp_path}/imagenet has no train; found nothing$"):
        existing(tmp_path / "imagenet" / "train", "data.train")
    (tmp_path / "file").touch()
    with pytest.raises(BadData, match=rf"there is no {tmp_path}/file/x: {tmp_path}/file is a file"):
        existing(tmp_path / "file" / "x", "data.train")


def test_a_secret_may_be_named_by_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "creds").mkdir()
    (tmp_path / "creds" / "token").write_text("t")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths_of("--secret", ["a=creds", "b=~/creds"]) == {"a": tmp_path / "creds", "b": tmp_path / "creds"}
    seen: list[Any] = []

    def run(self: Any, *arguments: str) -> str:
        seen.append(self._environment["RELIGHT_SECRET"])
        return "commit"

    monkeypatch.setattr(code_source._Git, "run", run)
    code_source.fetch("https://host/repository.git", "main", tmp_path / "code", secret=Path("creds"))
    assert set(seen) == {str(tmp_path / "creds")}
