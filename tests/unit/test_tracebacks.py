"""Which lines of a member's log are shown where a job has failed."""

from pathlib import Path

from relight_operator.cli.tracebacks import LOG_BYTES, end_of, last_traceback

FRAMES = "".join(f'  File "train.py", line {i}, in f{i}\n    f{i + 1}()\n' for i in range(20))
LOG = f"""epoch 1
Traceback (most recent call last):
{FRAMES}KeyError: 'first'
relight: something else
Traceback (most recent call last):
  File "train.py", line 3, in load
    return table[key]
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "train.py", line 7, in <module>
    load()
mypackage.errors.NoSuchDigit: eleven
with a second line
bye
"""


def test_the_traceback_of_the_failure_is_found_and_its_end_shown() -> None:
    assert last_traceback(LOG, "NoSuchDigit: eleven (train.py:7)") == [
        "Traceback (most recent call last):",
        '  File "train.py", line 7, in <module>',
        "    load()",
        "mypackage.errors.NoSuchDigit: eleven",
    ]
    assert last_traceback(LOG.replace("'x'", "'first'"), "KeyError: 'first' (train.py:3)")[1].endswith("in load")


def test_a_long_one_is_cut_to_its_last_lines() -> None:
    long = f"Traceback (most recent call last):\n{FRAMES}KeyError: 'first'\n"
    shown = last_traceback(long, "KeyError: 'first' (train.py:19)")
    assert len(shown) == 10
    assert shown[-1] == "KeyError: 'first'"


def test_nothing_is_shown_where_the_message_says_all() -> None:
    assert last_traceback(LOG, "config.model: unknown field") == []
    assert last_traceback("", "KeyError: 'first'") == []
    assert last_traceback("Traceback (most recent call last):\n  File", "KeyError") == []


def test_of_a_long_log_the_end_is_read_and_of_none_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * LOG_BYTES + b"\xff\nend\n")
    assert end_of(log).endswith("\nend\n")
    assert len(end_of(log)) <= LOG_BYTES
    assert end_of(tmp_path / "none") == ""
