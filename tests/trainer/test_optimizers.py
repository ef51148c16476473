"""Optimizers: the settings against torch's signatures, LARS and LAMB against plain numbers, states that come back."""

import importlib
import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relight_trainer.checkpoint import pack, unpack
from relight_trainer.config import BadConfig, check, parse
from relight_trainer.optim import build_optimizer, set_rates
from relight_trainer.optimizers.lamb import Lamb
from relight_trainer.optimizers.lars import Lars
from relight_trainer.schedule import Rates
from relight_trainer.settings.optimizer import OPTIMIZERS, OptimizerArguments
from relight_trainer.settings.rate import ScaledRate, rate_at

# What a person has no use for here: choices of implementation, and the sign of the goal.
UNSET = {"self", "params", "foreach", "maximize", "capturable", "differentiable", "closure"}
TORCHS = [c for c in vars(torch.optim).values() if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer)]


def settings(**optimizer: Any) -> OptimizerArguments:
    return parse({"optimizer": optimizer, "schedule": {"type": "constant"}}).optimizer


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(5, 1, 4, 4, generator=generator).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_every_optimizer_of_torch_can_be_named() -> None:
    named = {
        getattr(importlib.import_module(m), c) for m, _, c in (o.target.partition(":") for o in OPTIMIZERS.values())
    }
    left_out = {torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam}
    assert set(TORCHS) - named == left_out
    assert named - set(TORCHS) == {Lars, Lamb}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fields_are_the_arguments_of_the_class_with_its_defaults(name: str) -> None:
    chosen = settings(type=name)
    module, _, target = chosen.target.partition(":")
    signature = inspect.signature(getattr(importlib.import_module(module), target).__init__).parameters
    theirs = {n: p.default for n, p in signature.items() if n not in UNSET}
    ours = {"lr": chosen.lr, **chosen.keywords()}
    assert ours.keys() == theirs.keys() - ({"fused"} - ours.keys())
    recipe = {"lr", "momentum", "nesterov", "weight_decay"} if name == "sgd" else set()  # the digits'
    assert {n: v for n, v in ours.items() if n not in recipe} == {
        n: v for n, v in theirs.items() if n not in recipe | {"fused"}
    }


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_named_optimizer_trains_and_resumes_bit_equal_through_a_checkpoint(name: str) -> None:
    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False)) if name == "muon" else net().float()
        return model, build_optimizer(settings(type=name), model, 64)

    torch.manual_seed(0)
    whole, optimizer = begin()
    start = [p.detach().clone() for p in whole.parameters()]
    train(whole, optimizer, range(4))
    data = pack({"model": whole.state_dict(), "optimizer": optimizer.state_dict()})
    train(whole, optimizer, range(4, 12))
    assert any(not torch.equal(p, q) for p, q in zip(whole.parameters(), start, strict=True))
    assert all(p.isfinite().all() for p in whole.parameters())

    other, optimizer = begin()
    state = unpack(data)
    other.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    train(other, optimizer, range(4, 12))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), other.parameters(), strict=True))


# What the configuration does not offer: other branches of the same optimizers, and those it leaves out.
MORE: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd foreach": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "foreach": True}),
    "adam amsgrad fused": (torch.optim.Adam, {"amsgrad": True, "fused": True}),
    "adam tensor lr": (torch.optim.Adam, {"lr": torch.tensor(0.01), "foreach": False}),
    "rmsprop centered": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}),
    "lbfgs": (torch.optim.LBFGS, {"lr": 0.1, "max_iter": 3, "history_size": 2}),
    "lbfgs wolfe": (torch.optim.LBFGS, {"lr": 0.1, "max_iter": 3, "line_search_fn": "strong_wolfe"}),
    "sparse_adam": (torch.optim.SparseAdam, {"lr": 0.01}),
}


@pytest.mark.parametrize("name", MORE)
def test_other_states_of_torchs_optimizers_come_back_too(name: str) -> None:
    kind, arguments = MORE[name]

    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Embedding(6, 3, sparse=name == "sparse_adam")
        return model, kind(model.parameters(), **arguments)

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss: Tensor = (model(torch.tensor([step % 6, 1])) - 1).square().sum()  # noqa: B023
                loss.backward()
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]

    whole, optimizer = begin()
    run(whole, optimizer, range(4))
    data = pack({"model": whole.state_dict(), "optimizer": optimizer.state_dict()})
    run(whole, optimizer, range(4, 12))
    other, optimizer = begin()
    state = unpack(data)
    other.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    run(other, optimizer, range(4, 12))
    assert torch.equal(*(next(m.parameters()) for m in (whole, other)))


def numbers(name: str, weights: list[list[float]], gradients: list[list[list[float]]], **o: Any) -> list[list[float]]:
    """LARS and LAMB as their papers write them, in plain Python."""
    norm = lambda v: math.sqrt(sum(x * x for x in v))  # noqa: E731
    m = [[0.0] * len(w) for w in weights]
    v = [[0.0] * len(w) for w in weights]
    for t, step in enumerate(gradients, 1):
        for k, (w, g) in enumerate(zip(weights, step, strict=True)):
            if name == "lars":
                rate = o["trust"] * norm(w) / (norm(g) + o["weight_decay"] * norm(w) + o["eps"])
                m[k] = [
                    o["momentum"] * b + o["lr"] * rate * (x + o["weight_decay"] * y)
                    for b, x, y in zip(m[k], g, w, strict=True)
                ]
                weights[k] = [y - b for y, b in zip(w, m[k], strict=True)]
            else:
                m[k] = [o["beta1"] * a + (1 - o["beta1"]) * x for a, x in zip(m[k], g, strict=True)]
                v[k] = [o["beta2"] * a + (1 - o["beta2"]) * x * x for a, x in zip(v[k], g, strict=True)]
                r = [
                    a / (1 - o["beta1"] ** t) / (math.sqrt(b / (1 - o["beta2"] ** t)) + o["eps"])
                    + o["weight_decay"] * y
                    for a, b, y in zip(m[k], v[k], w, strict=True)
                ]
                rate = min(norm(w), o["max_norm"]) / norm(r)
                weights[k] = [y - o["lr"] * rate * x for y, x in zip(w, r, strict=True)]
    return weights


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_lars_and_lamb_are_their_papers(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(7,), (30,), (3,)]
    start = [torch.randn(s, generator=generator, dtype=torch.float64) * 5 for s in shapes]
    steps = [[torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(20)]
    chosen = settings(type=name, lr=0.3, weight_decay=0.05)
    module = nn.ParameterList([nn.Parameter(w.clone()) for w in start])
    optimizer = build_optimizer(chosen, module, 64)
    for step in steps:
        for p, g in zip(module, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    expected = numbers(name, [w.tolist() for w in start], [[g.tolist() for g in s] for s in steps], **dict(chosen))
    for p, w in zip(module, expected, strict=True):
        assert torch.allclose(p.detach(), torch.tensor(w, dtype=torch.float64), rtol=1e-12, atol=1e-13)


def test_without_adapting_lars_is_sgd_and_lamb_is_adamw() -> None:
    for ours, theirs in (
        (settings(type="lars", lr=0.1, adapt=False, nesterov=True), settings(type="sgd", lr=0.1, weight_decay=1e-4)),
        (settings(type="lamb", adapt=False, weight_decay=0.0), settings(type="adamw", eps=1e-6, weight_decay=0.0)),
    ):
        models = net(), net()
        for model, chosen in zip(models, (ours, theirs), strict=True):
            train(model, build_optimizer(chosen, model, 64), range(20))
        for p, q in zip(*(m.parameters() for m in models), strict=True):
            assert (p - q).abs().max() <= 1e-12


@pytest.mark.parametrize("unscaled_before", [False, True])  # as clipping has it
@pytest.mark.parametrize("kind", [Lars, Lamb])
def test_lars_and_lamb_under_a_scaler_unscale_and_skip_whole_steps(kind: Any, unscaled_before: bool) -> None:
    def run(scaled: bool) -> tuple[list[Tensor], dict[str, Any], float]:
        model = net()
        optimizer = kind(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for step in range(4):
            optimizer.zero_grad()
            x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            scaler.scale(model(x).square().mean()).backward()
            if scaled and step == 2:  # in one tensor only: the step is skipped for all
                next(model.parameters()).grad.view(-1)[0] = float("inf")  # type: ignore[union-attr]
            if unscaled_before:
                scaler.unscale_(optimizer)
            if scaled or step != 2:
                scaler.step(optimizer)
            scaler.update()
        return [*model.parameters()], optimizer.state_dict()["state"], scaler.get_scale()

    (ours, our_state, scale), (plain, state, _) = run(True), run(False)
    assert scale == 512.0
    for p, q in zip(ours, plain, strict=True):
        assert (p - q).abs().max() <= 1e-12
    for i, values in state.items():
        for key, value in values.items():
            assert torch.allclose(our_state[i][key], value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [Lars, Lamb])
def test_lars_and_lamb_never_wait_for_the_host(kind: Any) -> None:
    parameters = [nn.Parameter(torch.zeros(3, 4, device="meta")) for _ in range(2)]  # whose values nobody can read
    optimizer = kind(parameters)
    for found_inf in (None, torch.zeros(1, device="meta")):
        for p in parameters:
            p.grad = torch.zeros_like(p)
        if found_inf is not None:
            optimizer.grad_scale, optimizer.found_inf = torch.ones(1, device="meta"), found_inf
        optimizer.step()


def test_a_tensor_of_zeros_moves_at_the_plain_rate_and_stays_finite() -> None:
    for kind in (Lars, Lamb):
        zeros, still = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))
        optimizer = kind([zeros, still], lr=0.1, weight_decay=0.0)
        zeros.grad, still.grad = torch.ones(4), torch.zeros(4)
        optimizer.step()
        assert torch.allclose(zeros, torch.full((4,), -0.1))
        assert torch.equal(still, torch.ones(4))


def test_groups_take_parameters_by_name_and_by_layer_and_the_first_that_fits_wins() -> None:
    model = net()
    chosen = settings(
        type="adamw",
        lr=0.01,
        groups=[
            {"layer": "BatchNorm*", "weight_decay": 0},
            {"match": "*.bias", "weight_decay": 0, "lr_scale": 2, "beta2": 0.99},
            {"match": ["3"], "lr_scale": 0.1},
        ],
    )
    optimizer = build_optimizer(chosen, model, 64)
    set_rates(optimizer, Rates(0.02, None))
    conv, norm, bias, head = optimizer.param_groups
    own = dict(model.named_parameters())
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [
        [id(own[n]) for n in names] for names in (["0.weight"], ["1.weight", "1.bias"], ["3.bias"], ["3.weight"])
    ]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0, 0.0, 0.01]
    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 0.02, 0.04, 0.002]
    assert bias["betas"] == (0.9, 0.99)
    assert conv["betas"] == norm["betas"] == head["betas"] == (0.9, 0.999)


def test_a_layer_is_meant_by_the_names_of_its_bases_too() -> None:
    class Mine(nn.Linear): ...

    model = nn.Sequential(Mine(2, 2), nn.Linear(2, 2), nn.PReLU())
    groups = build_optimizer(
        settings(type="sgd", groups=[{"layer": "Linear", "weight_decay": 0}]), model, 64
    ).param_groups
    assert [len(g["params"]) for g in groups] == [1, 4]
    with pytest.raises(BadConfig, match=r"groups\[0\].layer: the model has no such layer"):
        build_optimizer(settings(type="sgd", groups=[{"layer": "Module", "weight_decay": 0}]), model, 64)


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ([{"match": "*.wieght"}], 'config.optimizer.groups[0].match: fits no name in the model; found ["*.wieght"]; allowed: '),
        ([{"layer": "BatchNorm3d"}], 'config.optimizer.groups[0].layer: the model has no such layer with parameters; found ["BatchNorm3d"]; allowed: BatchNorm2d, Conv2d, Linear'),
        ([{"match": "3", "layer": "Conv*"}], "config.optimizer.groups[0].layer: no parameter that fits `match` belongs to such a layer"),
        ([{"match": "*"}, {"match": "3"}], "config.optimizer.groups[1]: all that fits is in earlier groups already"),
    ],
)  # fmt: skip
def test_a_group_that_fits_nothing_is_refused_with_what_is_near(groups: Any, text: str) -> None:
    with pytest.raises(BadConfig) as caught:
        build_optimizer(settings(type="sgd", groups=groups), net(), 64)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("optimizer", "text"),
    [
        ({"type": "adam", "groups": [{"weight_decay": 0}]}, "config.optimizer.groups[0]: missing; allowed: match, layer or both"),
        ({"type": "adam", "groups": [{"match": "*", "wieght_decay": 0}]}, 'config.optimizer.groups[0].wieght_decay: unknown field; found "wieght_decay"; did you mean "weight_decay"?'),
        ({"type": "adam", "groups": [{"match": "*", "lr": 0}]}, "config.optimizer.groups[0].lr: unknown field"),
        ({"type": "adam", "groups": [{"match": "*", "beta1": 1}]}, "config.optimizer.groups[0].beta1: out of range; found 1; allowed: less than 1"),
        ({"type": "adam", "lr": {"value": 0.1}}, "config.optimizer.lr.at_batch: missing"),
        ({"type": "adam", "lr": 0}, "config.optimizer.lr: out of range; found 0; allowed: more than 0"),
        ({"type": "adam", "lr": "fast"}, 'config.optimizer.lr: wrong type; found "fast"; allowed: a number, or {value, at_batch'),
        ({"type": "lars", "lr": {"value": 0.1, "at_batch": 256, "scale": "sqr"}}, 'config.optimizer.lr.scale: not a known value; found "sqr"; did you mean "sqrt"?'),
    ],
)  # fmt: skip
def test_wrong_settings_are_answered_in_words(optimizer: Any, text: str) -> None:
    with pytest.raises(BadConfig) as caught:
        settings(**optimizer)
    assert str(caught.value).startswith(text)


def test_an_optimizer_of_ones_own_is_called_with_the_other_fields_and_has_groups_too() -> None:
    own = settings(type="torch.optim:SGD", lr=0.1, momentum=0.9, groups=[{"layer": "Linear", "weight_decay": 0.5}])
    rest, linear = build_optimizer(own, net(), 64).param_groups
    assert (rest["momentum"], rest["weight_decay"], linear["weight_decay"]) == (0.9, 0, 0.5)
    assert own.momentum_field == "momentum"
    with pytest.raises(BadConfig, match=r"config.optimizer: torch.optim:SGD cannot train this model: .*'momentun'"):
        build_optimizer(settings(type="torch.optim:SGD", lr=0.1, momentun=0.9), net(), 64)
    wrong = {"optimizer": {"type": "torch.optim:SGD", "lr": 0.1, "momentun": 0.9}, "schedule": {"type": "constant"}}
    with pytest.raises(BadConfig, match=r"config.optimizer.type: does not take the other fields: .*'momentun'"):
        check(parse(wrong))
    with pytest.raises(BadConfig, match=r"config.optimizer.lr: missing"):
        settings(type="torch.optim:SGD")


def test_muon_has_others_for_what_is_no_matrix_and_resumes_bit_equal_with_them() -> None:
    chosen = settings(
        type="muon",
        lr=0.02,
        weight_decay=0.0,
        but=["5"],
        others={"type": "adamw", "lr": 0.001, "groups": [{"match": "*.bias", "weight_decay": 0}]},
    )

    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(*net().float().children(), nn.Tanh(), nn.Linear(3, 2))
        return model, build_optimizer(chosen, model, 64)

    model, optimizer = begin()
    names = {id(p): name for name, p in model.named_parameters()}
    assert [[names[id(p)] for p in g["params"]] for g in optimizer.param_groups] == [
        ["3.weight"], ["0.weight", "1.weight", "5.weight"], ["1.bias", "3.bias", "5.bias"]
    ]  # fmt: skip
    set_rates(optimizer, Rates(0.01, None))
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, pytest.approx(0.0005), pytest.approx(0.0005)]

    apart, _ = begin()
    own = dict(apart.named_parameters())
    muon = torch.optim.Muon([own["3.weight"]], lr=0.01, weight_decay=0.0)
    decays = {name: 0.0 if name.endswith("bias") else 0.01 for name in own if name != "3.weight"}
    adamw = torch.optim.AdamW([{"params": [own[n]], "weight_decay": d} for n, d in decays.items()], lr=0.0005)
    train(model, optimizer, range(4))
    for step in range(4):
        train(apart, muon, range(step, step + 1))  # and its gradients are the others' too
        adamw.step()
        adamw.zero_grad()
    for p, q in zip(model.parameters(), apart.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-8)

    data = pack({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, range(4, 8))
    resumed, optimizer = begin()
    state = unpack(data)
    resumed.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    set_rates(optimizer, Rates(0.01, None))
    train(resumed, optimizer, range(4, 8))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))
    assert len(optimizer.state) == len(list(model.parameters()))


def test_muon_says_what_it_cannot_train() -> None:
    with pytest.raises(BadConfig, match=r"config.optimizer: muon cannot train this model: .*2D"):
        build_optimizer(settings(type="muon"), net(), 64)


def test_the_rate_follows_the_batch_as_the_configuration_says() -> None:
    for batch in (1, 7, 256, 1000, 8192):
        for scale, power in (("linear", 1.0), ("sqrt", 0.5), ("none", 0.0)):
            rate = rate_at(ScaledRate(value=0.1, at_batch=256, scale=scale), batch)  # type: ignore[arg-type]
            assert rate == pytest.approx(0.1 * (batch / 256) ** power, rel=1e-15)
    assert rate_at(0.1, 8192) == 0.1


def test_after_a_resume_the_settings_are_the_configurations_and_the_moments_the_checkpoints() -> None:
    model = net()
    before = build_optimizer(settings(type="sgd", lr=0.1, weight_decay=0.5), model, 64)
    train(model, before, range(2))
    after = build_optimizer(settings(type="sgd", lr=0.2, weight_decay=0.0), model, 64)
    after.load_state_dict(before.state_dict())
    [group] = after.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.2, 0.0)
    assert all("momentum_buffer" in s for s in after.state_dict()["state"].values())
