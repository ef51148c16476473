"""Paths of a supernet: drawn alike everywhere, trained alone, compared with statistics of their own."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn

from relight_trainer.models.digits_supernet import digits_supernet
from relight_trainer.problems import problems_of
from relight_trainer.settings.supernet import Supernet as Settings
from relight_trainer.supernet import BadSupernet, Choice, PathContext, Supernet, kendall_tau
from relight_trainer.supernet.choices import path_text, space_of
from relight_trainer.supernet.guard import verdict


def supernet(model: nn.Module | None = None, seed: int = 0, probe: Any = None, **settings: Any) -> Supernet:
    return Supernet(Settings.model_validate(settings), model or digits_supernet(4, 3), seed, probe)


def uneven() -> nn.Sequential:
    """Choices of 2, 3 and 5 options, of 1, 2, 3 ... times as many parameters."""
    return nn.Sequential(*(Choice(*(nn.Linear(4, 4 * (i + 1)) for i in range(n))) for n in (2, 3, 5)))


def p_value(counts: Counter[Any], kinds: int) -> float:
    """Of all `kinds` being equally likely."""
    return float(stats.chisquare([*counts.values()] + [0] * (kinds - len(counts))).pvalue)


def test_paths_are_a_function_of_seed_and_step() -> None:
    for sampler in ("uniform", "fair", "sandwich"):
        rows = supernet(sampler=sampler)
        expected = [rows.paths(step) for step in range(50)]
        resumed = supernet(sampler=sampler)
        torch.manual_seed(99)
        assert [resumed.paths(step) for step in reversed(range(50))] == expected[::-1]
        assert [supernet(sampler=sampler, seed=1).paths(step) for step in range(50)] != expected


def test_uniform_paths_are_uniform() -> None:
    one, many = supernet(), supernet(uneven(), paths=3)
    assert p_value(Counter(path for step in range(6400) for path in one.paths(step)), 64) > 0.01
    assert p_value(Counter(path for step in range(1000) for path in many.paths(step)), 30) > 0.01


def test_fair_paths_take_every_option_equally_often() -> None:
    even = supernet(sampler="fair")
    for step in range(20):
        paths = even.paths(step)
        assert len(paths) == 4
        for options in zip(*paths, strict=True):
            assert sorted(options) == [0, 1, 2, 3]  # strict fairness: each exactly once in each step
    orders = Counter(tuple(path[0] for path in even.paths(step)) for step in range(2400))
    assert p_value(orders, 24) > 0.01

    other = supernet(uneven(), sampler="fair")
    drawn = [path for step in range(12) for path in other.paths(step)]
    for until in range(1, len(drawn) + 1):
        for choice, size in enumerate((2, 3, 5)):
            counts = [sum(path[choice] == option for path in drawn[:until]) for option in range(size)]
            assert max(counts) - min(counts) <= 1


def test_a_sandwich_is_the_largest_the_smallest_and_some_between() -> None:
    rows = supernet(uneven(), sampler="sandwich", paths=5)
    for step in range(5):
        largest, smallest, *others = rows.paths(step)
        assert (largest, smallest) == ((1, 2, 4), (0, 0, 0))
        assert len(others) == 3
    assert len({path for step in range(100) for path in rows.paths(step)[2:]}) == 30


def parameters_on(model: nn.Module, path: Sequence[int], batch: Tensor) -> int:
    """What a forward and backward pass along `path` gives gradients, counted."""
    space = space_of(model)
    space.choose(path)
    model.zero_grad(set_to_none=True)
    model(batch).sum().backward()
    return sum(p.numel() for p in model.parameters() if p.grad is not None)


def test_a_budget_of_parameters_is_kept_uniformly() -> None:
    model = digits_supernet(4, 3)
    cost = {path: parameters_on(model, path, torch.randn(2, 1, 8, 8)) for path in space_of(model).all_paths()}
    budget = {"least": 500, "most": 700}
    allowed = {path for path, numel in cost.items() if 500 <= numel <= 700}
    assert 5 < len(allowed) < 60
    rows = supernet(model, sampler="budgeted", budget=budget)
    counts = Counter(path for step in range(3000) for path in rows.paths(step))
    assert set(counts) == allowed
    assert p_value(counts, len(allowed)) > 0.01
    assert set(rows.candidates().paths) == allowed
    with pytest.raises(BadSupernet, match=r"none costs from 0 to 10 parameters; found are paths from \d+ to \d+"):
        supernet(model, sampler="budgeted", budget={"most": 10})


def test_a_budget_of_flops_is_that_of_one_sample() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, sample = digits_supernet(4, 3), torch.randn(1, 1, 8, 8)
    model[1].eval()
    budget = {"of": "flops", "most": 10**6}
    rows = supernet(model, probe=lambda: model(sample), sampler="budgeted", budget=budget)
    assert rows._costs is not None
    assert [m.training for m in model][:3] == [True, False, True]
    for path in list(space_of(model).all_paths())[::7]:
        rows.choose(path)
        with FlopCounterMode(display=False) as counter:
            model(sample)
        assert counter.get_total_flops() == rows._costs.of(path)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_what_is_not_on_the_path_does_not_move(optimizer: Callable[..., Any], set_to_none: bool) -> None:
    torch.manual_seed(0)
    model = digits_supernet(4, 2)
    rows = supernet(model)
    moves = optimizer(model.parameters())

    def step(path: tuple[int, ...]) -> None:
        rows.choose(path)
        moves.zero_grad(set_to_none=set_to_none)
        model(torch.randn(4, 1, 8, 8)).square().sum().backward()
        moves.step()

    step((0, 1))
    idle = {n: p.clone() for n, p in model.named_parameters() if ".options.0" in n or ".options.1" in n}
    for _ in range(10):
        step((2, 3))
    trained = [n for n in idle if n.startswith(("3.options.0", "7.options.1"))]
    moved = [n for n in trained if not torch.equal(idle[n], model.get_parameter(n))]
    # With zeros instead of no gradients, momentum and weight decay go on: the negative control.
    assert moved == ([] if set_to_none else trained)
    assert len(trained) >= 2


class Drawing(nn.Module):
    """A model with paths of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.path: Any = None
        self.weight = nn.Parameter(torch.ones(1))

    def sample_path(self, context: PathContext) -> Any:
        return {"depth": context.generator.randint(1, 4), "step": context.step}

    def set_path(self, path: Any) -> None:
        self.path = path


def test_a_models_own_paths_are_drawn_from_the_context() -> None:
    model = Drawing()
    rows, again = supernet(model, paths=2), supernet(Drawing(), paths=2)
    for step in (5, 3):
        paths = rows.paths(step)
        assert paths == again.paths(step)
        assert [path["step"] for path in paths] == [step, step]
    assert len({path_text(rows.paths(step)) for step in range(40)}) == 40
    rows.choose(paths[1])
    assert model.path == paths[1]
    assert {path["step"] for path in rows.candidates().paths} == {-1}
    assert len(rows.candidates().paths) == 4  # all that there are


def test_what_does_not_fit_is_refused_in_words() -> None:
    class Half(nn.Module):
        def set_path(self, path: Any) -> None: ...

    class Odd(Drawing):
        def sample_path(self, context: PathContext) -> Any:
            return object()

    with pytest.raises(
        BadSupernet, match=r"Linear has no paths; allowed: blocks of relight_trainer\.supernet\.Choice, or"
    ):
        supernet(nn.Linear(1, 1))
    with pytest.raises(BadSupernet, match="Half has set_path and lacks sample_path"):
        supernet(Half())
    with pytest.raises(BadSupernet, match=r"supernet.sampler: found fair for a model with a sample_path of its own"):
        supernet(Drawing(), sampler="fair")
    with pytest.raises(BadSupernet, match="allowed is a JSON value"):
        path_text(supernet(Odd()).paths(0)[0])
    with pytest.raises(BadSupernet, match="the choice 0 has choices in its options"):
        supernet(nn.Sequential(Choice(Choice(nn.Linear(1, 1)))), sampler="sandwich")
    with pytest.raises(BadSupernet, match="the choice 0 has no options"):
        supernet(nn.Sequential(Choice()))


@pytest.mark.parametrize(
    ("settings", "path", "words"),
    [
        ({"sampler": "fare"}, "supernet.sampler", 'did you mean "fair"?'),
        ({"sampler": "budgeted"}, "supernet.budget", "a budget is missing for the sampler budgeted"),
        ({"budget": {"most": 5}}, "supernet.budget", "a budget does not go with the sampler uniform"),
        ({"sampler": "fair", "paths": 3}, "supernet.paths", "as many paths as the largest choice has options"),
        ({"sampler": "sandwich", "paths": 1}, "supernet.paths", "allowed: 2 or more"),
        ({"sampler": "budgeted", "budget": {"least": 9, "most": 5}}, "supernet.budget.least", "allowed: 5 or less"),
        ({"recalibrate": {"sample": 3}}, "supernet.recalibrate.sample", 'did you mean "samples"?'),
    ],
)
def test_wrong_settings_are_answered(settings: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Settings.model_validate(settings)
    [problem] = problems_of(raised.value, "supernet")
    assert problem.path == path
    assert words in str(problem)


def test_the_verdict_names_who_differs_and_since_when() -> None:
    same = {1: "a", 2: "b", 3: "c"}
    assert verdict([same, same]) == ""
    assert verdict([same, {2: "b", 3: "c", 4: "d"}]) == ""
    assert verdict([same, {7: "x"}]) == ""  # no step in common: nothing can be said
    assert "rank 1 took other paths than rank 0, in step 3 " in verdict([same, {**same, 2: "x", 3: "y"}, same])
    assert "ranks 0, 3 took other paths than rank 1, in step 4 " in verdict([{3: "x"}, same, same, {3: "y"}, same])


def test_kendalls_tau_is_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (2, 5, 64):
        for most in (3, 1000):
            one, other = torch.randint(0, most, (2, count), generator=generator).tolist()
            ours, theirs = kendall_tau(one, other), stats.kendalltau(one, other).statistic
            assert ours == pytest.approx(theirs, abs=1e-12) or (math.isnan(ours) and math.isnan(theirs))
