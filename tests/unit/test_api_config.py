"""The trainer's configuration: defaults, arguments of registered models, canonical form and hash."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from relight_operator.api.job import TrainerSpec
from relight_trainer.config import BadConfig, TrainerConfig, canonical, config_hash, parse
from relight_trainer.settings.data import DATA
from relight_trainer.settings.model import MODELS
from relight_trainer.settings.spans import EpochSize, Span, Time
from relight_trainer.strict import nearest


def test_an_empty_configuration_is_the_digits_recipe() -> None:
    config = parse({})
    assert config == TrainerConfig()
    assert config.model.keywords() == {"width": 16}
    assert config.train.duration == Span(15, "ep")
    assert (config.optimizer.type, config.optimizer.lr, config.schedule.type) == ("sgd", 0.1, "onecycle")


def test_the_canonical_form_does_not_depend_on_what_was_left_out_or_how_it_was_written() -> None:
    short = canonical(parse({"optimizer": {"type": "sgd", "lr": 1}}))
    long = canonical(
        parse(
            {
                "train": {"seed": 0},
                "optimizer": {"weight_decay": 5e-4, "lr": 1.0, "type": "sgd"},
                "model": {"width": 16, "type": "digits_cnn"},
            }
        )
    )
    assert short == long
    assert list(short) == sorted(short)
    assert config_hash(short) == config_hash(long)


def test_the_hash_names_the_configuration_and_not_the_order_of_its_keys() -> None:
    one = {"a": {"x": 1, "y": [1, 2]}, "b": None}
    assert config_hash(one) == config_hash({"b": None, "a": {"y": [1, 2], "x": 1}})
    assert config_hash(one) != config_hash({**one, "b": 0})
    assert len(config_hash(one)) == 16


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "train": st.fixed_dictionaries(
                {},
                optional={
                    "duration": st.builds("{}{}".format, st.integers(1, 999), st.sampled_from(["ep", "st"])),
                    "seed": st.integers(0, 2**63 - 1),
                },
            ),
            "model": st.builds(lambda w: {"type": "digits_cnn", "width": w}, st.integers(1, 1024)),
            "optimizer": st.sampled_from(
                [{"type": "adamw"}, {"type": "sgd", "momentum": 0, "nesterov": False}, {"type": "sgd", "lr": 3}]
            ),
            "schedule": st.sampled_from([{"type": "constant"}, {"type": "onecycle", "anneal": "linear"}]),
            "evaluate": st.sampled_from([{"every": "1ep"}, {"every": None}, {}]),
        },
    )
)
def test_the_canonical_form_is_a_configuration_and_equal_to_its_origin(value: dict[str, object]) -> None:
    config = parse(value)
    assert parse(canonical(config)) == config
    assert canonical(parse(canonical(config))) == canonical(config)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"model": {"type": "digits_cnm"}}, 'config.model.type: unknown name; found "digits_cnm"; did you mean "digits_cnn"? allowed: digits_cnn'),
        ({"model": {"type": "digits_cnn", "width": 0}}, "config.model.width: out of range; found 0; allowed: 1 or more"),
        ({"model": "digits_cnn"}, 'config.model: wrong type; found "digits_cnn"; allowed: a mapping with a type: digits_cnn'),
        ({"data": {"type": "digits", "test_fraction": 1}}, "config.data.test_fraction: out of range; found 1; allowed: less than 1"),
        ({"optimizer": {"lr": 0.1}}, "config.optimizer.type: missing; allowed: adadelta, adafactor, adagrad, adam, adamax, adamw,"),
        ({"optimizer": {"type": "adamm"}}, 'config.optimizer.type: unknown name; found "adamm"; did you mean "adam"? allowed: adadelta, adafactor,'),
        ({"optimizer": {"type": "adamw", "momentum": 0.9}}, 'config.optimizer.momentum: unknown field; found "momentum"; allowed: amsgrad, beta1, beta2, eps, fused, groups, lr, type, weight_decay'),
        ({"optimizer": {"type": "sgd", "momentum": 0}}, "config.optimizer.nesterov: nesterov needs a momentum above 0"),
        ({"train": {"duration": "15epochs"}}, 'config.train.duration: not a length of training; found "15epochs"; allowed: whole epochs, optimizer steps or samples, such as 15ep, 500st or 1280000sa, or a time, such as 90s, 10m or 1h30m'),
        ({"train": {"duration": "0s"}}, 'config.train.duration: not a length of training; found "0s"'),
        ({"train": {"duration": "10min"}}, 'config.train.duration: not a length of training; found "10min"'),
        ({"train": {"duration": "10m"}}, 'config.schedule.type: its shape follows from the number of steps, which a duration of 10m leaves open; found "onecycle"; allowed: constant, inverse_sqrt, multistep, plateau, step, a sequence that ends in one'),
        ({"train": {"duration": "10m"}, "schedule": {"type": "little:own"}}, "config.schedule.type: its shape follows from the number of steps"),
        ({"train": {"duration": "10m"}, "schedule": {"type": "constant", "warmup": "5%"}}, 'config.schedule.warmup: a share of a training whose number of steps a duration of 10m leaves open; found "5%"; allowed: epochs'),
        ({"train": {"duration": "10m"}, "schedule": {"type": "inverse_sqrt"}}, "config.schedule.timescale: a share of a training"),
        ({"train": {"duration": "10m"}, "schedule": {"type": "multistep", "at": ["5ep", "50%"]}}, "config.schedule.at[1]: a share"),
        ({"train": {"duration": "10m"}, "schedule": {"type": "sequence", "parts": [{"length": "9ep", "schedule": {"type": "cosine"}}, {"schedule": {"type": "linear"}}]}}, "config.schedule.parts[1].schedule.type: its shape"),
        ({"train": {"duration": "10m"}, "schedule": {"type": "constant"}, "freeze": [{"match": "x", "until": "50%"}]}, "config.freeze[0].until: a share of a training"),
        ({"schedule": {"type": "constant", "warmup": "1m"}}, 'config.schedule.warmup: a time, where a place must follow from the step alone; found "1m"; allowed: epochs'),
        ({"schedule": {"type": "plateau"}, "evaluate": {"every": "5m"}}, "config.evaluate.every: the rate would follow from how fast the machines are"),
        ({"observe": {"tensorboard": True, "histograms": {"every": "5m"}}}, "config.observe.histograms.every: a time, where steps are counted"),
        ({"train": {"duration": 15}}, "config.train.duration: not a length of training; found 15"),
        ({"train": {"precision": "bf_16"}}, 'config.train.precision: not a known value; found "bf_16"; did you mean "bf16"? allowed: fp32, tf32, bf16, fp16'),
        ({"train": {"globalBatch": 64}}, 'did you mean "global_batch"?'),
        ([], "config: wrong type; found []; allowed: a mapping"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_answered_in_words(value: object, text: str) -> None:
    with pytest.raises(BadConfig) as caught:
        parse(value)
    assert str(caught.value).startswith(text) or text in str(caught.value)
    assert len(caught.value.problems) == 1
    assert caught.value.exit_code == 64


def test_spans_in_steps() -> None:
    drops, keeps = EpochSize(22, 1408, 64), EpochSize(23, 1438, 64)
    assert Span(15, "ep").steps(drops) == 330
    assert Span(500, "st").steps(drops) == 500
    assert [Span(n, "sa").steps(drops) for n in (1, 64, 65, 1408, 1409)] == [1, 1, 2, 22, 23]
    assert [Span(n, "sa").steps(keeps) for n in (1, 64, 65, 1409, 1438, 1439)] == [1, 1, 2, 23, 23, 24]
    assert [Span(1, "ep").words, Span(2, "st").words, str(Span(1, "st"))] == ["1 epoch", "2 steps", "1st"]


def test_lengths_that_are_times() -> None:
    config = parse(
        {
            "train": {"duration": "90m"},
            "evaluate": {"every": "300s"},
            # The first part knows its own end.
            "schedule": {
                "type": "sequence",
                "parts": [{"length": "9ep", "schedule": {"type": "cosine", "warmup": "5%"}}, {}],
            },
        }
    )
    assert (config.train.duration, config.evaluate.every) == (Time(5_400_000), Time(300_000))
    written = canonical(config)
    assert (written["train"]["duration"], written["evaluate"]["every"]) == ("1h30m", "5m")
    assert parse(written) == config
    assert (
        canonical(
            parse({"train": {"duration": "1h1m1s1ms"}, "schedule": {"type": "plateau"}, "evaluate": {"every": "5ep"}})
        )["train"]["duration"]
        == "1h1m1s1ms"
    )


def test_configurations_are_checked_without_importing_torch() -> None:
    code = "import sys, relight_trainer.config; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_every_registered_name_is_its_arguments_type_and_has_a_target() -> None:
    for table in (MODELS, DATA):
        for name, entry in table.items():
            assert entry.arguments.model_fields["type"].annotation is str, name
            assert entry.target.startswith("relight_trainer.")
            assert entry.target.count(":") == 1


def test_the_nearest_name_is_found_across_case_and_separators_and_only_if_it_is_near() -> None:
    assert nearest("nproc_per_node", ["procPerNode", "nodes"]) == "procPerNode"
    assert nearest("widht", ["width", "type"]) == "width"
    assert nearest("zebra", ["width", "type"]) is None
    assert nearest("", ["width"]) is None


def test_what_is_none_in_python_is_not_given() -> None:
    assert TrainerSpec(config=None, script=["train.py"]) == TrainerSpec(script=["train.py"])
    with pytest.raises(ValidationError, match="exactly one"):
        TrainerSpec(config={}, script=["train.py"])


def test_keys_that_are_no_text_are_a_problem_too() -> None:
    with pytest.raises(BadConfig):
        parse({"model": {1: 2}, 3: 4})
