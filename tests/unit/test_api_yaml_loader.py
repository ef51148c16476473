"""One YAML for people, kubectl and us. Expected values are what sigs.k8s.io/yaml makes of the same text."""

import json
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relight_trainer.yaml_loader import MAX_BYTES, YamlError, load_documents


def load(text: str):
    (document,) = load_documents(text.encode())
    return document.value


def problem(text: str):
    with pytest.raises(YamlError) as caught:
        load_documents(text.encode("utf-8", "surrogatepass"))
    return caught.value.problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 100000), ("5e-4", 0.0005), (".5", 0.5), ("1.", 1), ("-1.5", -1.5), ("+7", 7), ("8.0", 8),
        ("0x1F", 31), ("0b101", 5), ("0o17", 15), ("0777", 511), ("08", 8), ("1_000", 1000), ("-0", 0),
        ("18446744073709551615", 18446744073709551615), ("18446744073709551616", 18446744073709552000),
        ("yes", True), ("On", True), ("y", True), ("N", False), ("off", False), ("TRUE", True), ("tRUE", "tRUE"),
        ("'yes'", "yes"), ('"5"', "5"), ("!!str 5", "5"), ("!!float 5.5", 5.5), ("|\n  5\n", "5\n"),
        ("10:30", "10:30"), ("1:30:00", "1:30:00"), ("2001-12-14", "2001-12-14"), ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("1e", "1e"), ("0x", "0x"), ("1.2.3", "1.2.3"), ("-", [None]), ("+", "+"), (".", "."), ("_1", "_1"), ("inf", "inf"), ("nan", "nan"),
        ("~x", "~x"), ("15ep", "15ep"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)  # fmt: skip
def test_scalars_mean_what_kubectl_takes_them_for(text: str, value: object) -> None:
    found = load(f"a: {text}" if text != "-" else "a:\n-")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is the judge here")
def test_thousands_of_scalars_mean_what_kubectl_itself_takes_them_for(tmp_path: Path) -> None:
    rng = random.Random(0)
    letters = "0123456789+-._eExXobB", "0123456789+-._eEyYnNtrueofalsTRUEONFL~:"
    texts = ["".join(rng.choices(letters[i % 2], k=rng.randint(1, 6))) for i in range(4000)]
    markers = re.compile(r"[:-]|[-:] .*|.*:|---.*|\.\.\..*|.*[eE][+]?[0-9]{3,}|[+-]?\.(inf|nan)", re.IGNORECASE)
    text = "apiVersion: v1\nkind: Config\nextensions:\n- name: x\n  extension:\n    values:\n"
    text += "".join(f"    - {t}\n" for t in texts if not markers.fullmatch(t))
    file = tmp_path / "config"  # a kubeconfig: kubectl reads it without a server
    file.write_text(text)
    command = ["kubectl", "config", "view", "--raw", f"--kubeconfig={file}", "-o", "json"]
    theirs = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    theirs, ours = (c["extensions"][0]["extension"]["values"] for c in (theirs, load(text)))
    assert len(ours) > 3500
    assert [(o, type(o)) for o in ours] == [(t, type(t)) for t in theirs]


@pytest.mark.parametrize("text", ["~", "null", "NULL", ""])
def test_nothing_is_null(text: str) -> None:
    assert load(f"{{a: {text}}}") == {"a": None}


def test_keys_become_text() -> None:
    assert load("{1: a, true: b, on2: c, 1.5: d}") == {"1": "a", "true": "b", "on2": "c", "1.5": "d"}


def test_a_bare_on_as_a_key_is_refused_which_kubectl_would_read_as_true() -> None:
    with pytest.raises(YamlError, match='YAML reads this key as true; found on; allowed: "on", in quotes'):
        load("{on: a}")
    assert load("{'on': a}") == {"on": "a"}


def test_merge_keys_lose_to_the_mapping_s_own() -> None:
    text = "base: &b {x: 1, b: {z: 2}}\nover: &o {x: 5}\njob: {<<: *b, x: 3}\ntwo: {<<: [*o, *b]}\n"
    assert load(text)["job"] == {"x": 3, "b": {"z": 2}}
    assert load(text)["two"] == {"x": 5, "b": {"z": 2}}
    assert load("{'<<': 1}") == {"<<": 1}


def test_each_key_and_item_has_its_line() -> None:
    (document,) = load_documents(b"a:\n  b: 1\n\n  c:\n  - x\n  - {d: 1}\n'e.f': 2\n")
    assert document.lines == {"a": 1, "a.b": 2, "a.c": 4, "a.c[0]": 5, "a.c[1]": 6, "a.c[1].d": 6, '["e.f"]': 7}


def test_empty_documents_are_left_out() -> None:
    assert [d.value for d in load_documents(b"---\n---\na: 1\n---\n# nothing\n---\nb: 2\n...\n")] == [
        {"a": 1},
        {"b": 2},
    ]
    assert load_documents(b"") == []


@pytest.mark.parametrize(
    ("text", "message", "path", "line"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "a key given twice", "b.c", 4),
        ("a: 1\n'a': 2", "a key given twice", "a", 2),
        ("a: .nan", "not a finite number", "a", 1),
        ("a:\n- 1\n- -.INF", "not a finite number", "a[1]", 3),
        ("a: 1e999", "not a finite number", "a", 1),
        ("a: " + "9" * 400, "not a finite number", "a", 1),
        ("a: 0x" + "f" * 5000, "not a finite number", "a", 1),
        ("a: !!python/object/apply:os.system [ls]", "an unknown tag", "a", 1),
        ("a: !!python/name:os.system", "a value that does not fit its tag", "a", 1),
        ("a: !!set {b}", "an unknown tag", "a", 1),
        ("a: !!binary aGk=", "a value that does not fit its tag", "a", 1),
        ("a: !!int x", "a value that does not fit its tag", "a", 1),
        ("? [1]\n: 2", "a key that is not text", "", 1),
        ("? \n: 2", "a key that is not text", "", 1),
        ("a: &x [*x]", "an anchor that contains itself", "a[0]", 1),
        ("a: &x {<<: *x}", "an anchor that contains itself", "a", 1),
        ("a: {<<: 5}", "a merge of something that is no mapping", "a", 1),
        ("a: *x", "not YAML: found undefined alias 'x'", "", 1),
        (
            "a: 1\nb: [",
            "not YAML: while parsing a flow node, expected the node content, but found '<stream end>'",
            "",
            2,
        ),
        ("a: 1\nb: \x07", "not YAML: a character that no text holds", "", 2),
        ('a: "\\ud83d"', "half a character", "a", 1),
        ("a: " + "[" * 100 + "]" * 100, "not YAML: nested deeper than 64 levels", "", 1),
        (
            "a: %b",
            "not YAML: while scanning for the next token, found character '%' that cannot start any token",
            "",
            1,
        ),
    ],
)
def test_what_json_cannot_hold_or_nobody_means_is_refused_with_its_place(
    text: str, message: str, path: str, line: int
) -> None:
    found = problem(text)
    assert (found.message, found.path, found.line) == (message, path, line)


def test_anchors_that_multiply_are_refused_at_once() -> None:
    laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    start = time.monotonic()
    assert problem(laughs).message == "too many values"
    assert time.monotonic() - start < 10


def test_a_huge_file_is_refused_unread() -> None:
    with pytest.raises(YamlError, match="too large"):
        load_documents(b"#" * (MAX_BYTES + 1))


def test_bytes_that_are_no_text_are_refused_with_their_line() -> None:
    with pytest.raises(YamlError) as caught:
        load_documents(b"a: 1\nb: \xff")
    assert (caught.value.problem.message, caught.value.problem.line) == ("not UTF-8 text", 2)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(-1e15, 1e15)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), JSON, min_size=1, max_size=3), st.booleans())
def test_json_is_read_as_json(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=True, indent=1 if ascii_only else None)
    (document,) = load_documents(text.encode())
    assert document.value == value
