"""A schedule is compared with the training's length: what would never happen, or happen twice, is refused."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from relight_operator.cli.validate import validate_command
from relight_trainer.config import BadConfig, parse
from relight_trainer.schedule import build_schedule, require_sense
from relight_trainer.settings import schedule as schedules
from relight_trainer.settings.optimizer import Sgd
from relight_trainer.settings.position import UNKNOWN, Length
from relight_trainer.settings.schedule_sense import of_evaluations, ruler_of, unchecked
from relight_trainer.settings.spans import EpochSize

pytestmark = pytest.mark.timeout(60)
EPOCH = EpochSize(steps=10, samples=640, batch=64)


def config(schedule: dict[str, Any], duration: str = "15ep", every: str = "1ep") -> dict[str, Any]:
    return {
        "schedule": schedule,
        "train": {"duration": duration},
        "evaluate": {"every": every},
        "optimizer": {"type": "sgd"},
    }


def parts(*given: Any) -> dict[str, Any]:
    return {"type": "sequence", "parts": [part if isinstance(part, dict) else {"length": part} for part in given]}


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"type": "cosine", "warmup": "500ep"}, 'warmup: the warm-up is longer than the training of 15ep; found "500ep"'),
    ({"type": "constant", "warmup": "20ep"}, "warmup: the warm-up is longer than the training of 15ep"),
    ({"type": "cosine", "warmup": "15ep"}, "warmup: the warm-up is as long as the training of 15ep, so that nothing is left for the decay"),
    ({"type": "linear", "warmup": "100%"}, "warmup: the warm-up is as long as the training of 15ep"),
    ({"type": "multistep", "at": ["8ep", "20ep"]}, 'at[1]: the place is after the end of the training of 15ep; found "20ep"'),
    ({"type": "multistep", "at": ["8st", "6st"]}, 'at[1]: earlier than 8st, the entry before it; found "6st"; allowed: places in the order of the training, each once'),
    ({"type": "multistep", "at": ["8ep", "8ep"]}, "at[1]: the same place as 8ep, the entry before it"),
    ({"type": "multistep", "at": ["60%", "6ep"]}, "at[1]: earlier than 60%, the entry before it"),
    ({"type": "multistep", "at": ["20%", "3ep"]}, "at[1]: the same place as 20%, the entry before it"),
    ({"type": "step", "every": "16ep"}, "every: one stretch is longer than the training of 15ep"),
    ({"type": "inverse_sqrt", "timescale": "16ep"}, "timescale: the decay begins after the training of 15ep"),
    ({"type": "wsd", "decay": "16ep"}, "decay: the decay is longer than the training of 15ep"),
    ({"type": "wsd", "decay": "60%", "warmup": "7ep"}, "decay: the decay and the warm-up of 7ep together are longer than the training of 15ep"),
    ({"type": "cosine", "cycles": 1000, "cycle_growth": 10.0}, "cycle_growth: the longest of 1000 cycles is too many times as long as the shortest"),
    (parts("70%", "50%"), 'parts[1].length: the parts up to this one are longer than the training of 15ep: 120% of it; found "50%"; allowed: parts that fill it, 100% in all'),
    (parts("8ep", "8ep", {}), "parts[1].length: the parts up to this one are longer than the training of 15ep: 107% of it"),
    (parts("5ep", "10ep", {}), "parts[1].length: nothing of the training of 15ep is left for the last part"),
    (parts("30%", "30%"), "parts[1].length: the parts end after 60% of the training of 15ep"),
    (parts({"length": "5ep", "schedule": {"type": "linear", "warmup": "6ep"}}, {}), "parts[0].schedule.warmup: the warm-up is longer than its part of 5ep"),
    (parts("10ep", {"schedule": {"type": "step", "every": "6ep"}}), "parts[1].schedule.every: one stretch is longer than the last part"),
    ({"type": "plateau", "patience": 13}, 'patience: 14 evaluations come before the end of the training of 15ep, and the rate is reduced after 15 at the earliest; found "13"; allowed: at most 12, or a smaller evaluate.every'),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "text"), NONSENSE)
def test_a_schedule_that_cannot_be_meant_is_refused_by_the_configuration_alone(schedule: Any, text: str) -> None:
    with pytest.raises(BadConfig) as raised:
        parse(config(schedule))
    assert str(raised.value).startswith(f"config.schedule.{text}"), str(raised.value)


@pytest.mark.parametrize(
    "schedule",
    [
        {"type": "constant", "warmup": "15ep"},
        {"type": "cosine", "warmup": "14ep", "cycles": 3},
        {"type": "multistep", "at": ["5ep", "10ep", "15ep"]},
        {"type": "multistep", "at": ["33%", "6ep", "80%"]},
        {"type": "step", "every": "15ep"},
        {"type": "wsd", "decay": "60%", "warmup": "6ep"},
        {"type": "plateau"},
        {"type": "onecycle"},
        parts("33.3%", "33.3%", "33.3%"),
        parts("5ep", "66%", {}),
        parts({"length": "5ep", "schedule": {"type": "cosine", "warmup": "50%"}}, {}),
    ],
)
def test_a_schedule_that_makes_sense_is_taken(schedule: dict[str, Any]) -> None:
    found = parse(config(schedule))
    build_schedule(found.schedule, found.optimizer, Length(150, EPOCH), 64)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ({"type": "cosine", "warmup": "500st"}, "warmup: the warm-up is longer than the training of 150 steps"),
        ({"type": "multistep", "at": ["500st"]}, "at[0]: the place is after the end of the training of 150 steps"),
        ({"type": "multistep", "at": ["5ep", "50st"]}, "at[1]: the same place as 5ep, the entry before it"),
        ({"type": "multistep", "at": ["5ep", "1280sa"]}, "at[1]: earlier than 5ep, the entry before it"),
        ({"type": "cosine", "cycles": 200}, "cycles: the shortest of 200 cycles in the training of 150 steps is shorter than one step"),
        ({"type": "cosine", "cycles": 9, "cycle_growth": 2.0}, "cycles: the shortest of 9 cycles"),
        (parts("100st", "10ep", {}), "parts[1].length: the parts up to this one are longer than the training of 150 steps: 133% of it"),
        (parts("100st", "5ep", {}), "parts[1].length: nothing of the training of 150 steps is left for the last part"),
    ],
)  # fmt: skip
def test_what_the_data_has_to_be_known_for_is_refused_before_the_first_step(schedule: Any, text: str) -> None:
    found = parse(config(schedule))
    with pytest.raises(BadConfig) as raised:
        build_schedule(found.schedule, found.optimizer, Length(150, EPOCH), 64)
    assert str(raised.value).startswith(f"config.schedule.{text}"), str(raised.value)


def test_evaluations_are_counted_once_the_steps_are_known() -> None:
    found = parse(config({"type": "plateau", "patience": 3}, every="40st"))
    ruler = ruler_of(found.train.duration, Length(150, EPOCH))
    with pytest.raises(BadConfig, match=r"config\.schedule\.patience: 3 evaluations come before the end .* at most 1"):
        require_sense(of_evaluations(found.schedule, found.evaluate, ruler))


@pytest.mark.parametrize(
    ("schedule", "duration", "places"),
    [
        ({"type": "constant", "warmup": "5ep"}, "10m", [("warmup",)]),
        ({"type": "multistep", "at": ["5ep", "9ep"]}, "10m", [("at", 0), ("at", 1)]),
        ({"type": "cosine", "warmup": "50st"}, "15ep", [("warmup",)]),
        ({"type": "cosine", "warmup": "5ep"}, "15ep", []),
        ({"type": "plateau"}, "500st", [("patience",)]),
        (parts("5ep", {}), "10m", [("parts", 0, "length")]),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path: Path, schedule: Any, duration: str, places: Any) -> None:
    found = parse(config(schedule, duration))
    assert [finding.place for finding in unchecked(found.train, found.schedule, found.evaluate)] == places
    file = tmp_path / "config.yaml"
    file.write_text(str(config(schedule, duration)).replace("'", '"'))
    answer = CliRunner().invoke(validate_command, [str(file)])
    assert answer.exit_code == 0, answer.output
    assert answer.output.count("not checked here: config.schedule.") == len(places)


def test_places_out_of_order_are_refused_where_the_length_is_a_time() -> None:
    with pytest.raises(BadConfig, match=r"schedule\.at\[1\]: earlier than 9ep, the entry before it"):
        parse(config({"type": "multistep", "at": ["9ep", "5ep"]}, "10m"))


SAMPLES: dict[str, dict[str, Any]] = {
    "step": {"every": "1ep"},
    "multistep": {"at": ["5ep"]},
    "sequence": {"parts": [{}]},
}


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_every_type_of_schedule_has_a_rate_of_its_own(name: str) -> None:
    found = parse(config({"type": name, **SAMPLES.get(name, {})}))
    for total in (150, UNKNOWN) if name in ("constant", "inverse_sqrt", "step", "multistep", "plateau") else (150,):
        built = build_schedule(found.schedule, found.optimizer, Length(total, EPOCH), 64)
        changes = len({built(step).lr for step in range(0, 150, 7)}) > 1
        assert changes == (name not in {"constant", "plateau", "sequence"} and (name != "inverse_sqrt" or total == 150))


def test_a_type_of_schedule_that_nobody_handles_is_an_error_and_no_constant_rate() -> None:
    class Unheard(schedules.Warmed):
        pass

    with pytest.raises(AssertionError, match="Unheard"):
        build_schedule(Unheard(type="unheard"), Sgd(), Length(150, EPOCH), 64)  # type: ignore[arg-type]


POSITIONS = st.one_of(
    st.integers(1, 30).map("{}ep".format), st.integers(1, 300).map("{}st".format), st.integers(0, 100).map("{}%".format)
)


@settings(deadline=None, max_examples=150)
@given(at=st.lists(POSITIONS, min_size=1, max_size=4), warmup=st.none() | POSITIONS)
def test_a_schedule_that_is_taken_does_what_it_says(at: list[str], warmup: str | None) -> None:
    """At the steps' level: a rate that is taken as sensible falls at each of its places, and reaches its peak."""
    steps = [_steps(place) for place in at]
    sensible = steps == sorted(set(steps)) and steps[-1] <= 150 and (warmup is None or _steps(warmup) <= 150)
    given_config = config({"type": "multistep", "at": at, "warmup": warmup, "factor": 0.5})
    try:
        found = parse(given_config)
        built = build_schedule(found.schedule, found.optimizer, Length(150, EPOCH), 64)
    except BadConfig:
        assert not sensible
        return
    assert sensible
    if warmup is None:
        falls = [step for step in range(1, 150) if built(step).lr < built(step - 1).lr]
        assert falls == sorted({round(step) for step in steps} & set(range(1, 150)))


def _steps(position: str) -> float:
    if position.endswith("%"):
        return 150 * float(position[:-1]) / 100
    return int(position[:-2]) * (10 if position.endswith("ep") else 1)
