"""The section `optimizer`: torch's optimizers, LARS and LAMB, by name and with checked arguments.

A field is named as torch names the argument; pairs are two fields (`betas` is `beta1` and `beta2`). A test holds the
fields and their defaults against torch's signatures. Not here: LBFGS (needs the loss again and again in one step) and
SparseAdam (takes only sparse gradients).
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, SerializeAsAny, ValidationError, WithJsonSchema, model_validator
from pydantic_core import InitErrorDetails

from relight_trainer.registry import CUSTOM
from relight_trainer.settings.choice import kinds
from relight_trainer.settings.names import Patterns
from relight_trainer.settings.rate import Rate
from relight_trainer.strict import StrictModel, located, problem, unknown

_Beta = Annotated[float, Field(ge=0, lt=1)]


class Group(StrictModel):
    """Parameters with settings of their own. A parameter belongs to the first group that it fits."""

    model_config = ConfigDict(extra="allow")

    match: Patterns = Field([], description="Names of parameters or modules, such as *.bias or backbone.*")
    layer: Patterns = Field([], description="Classes of the modules they belong to, such as BatchNorm* or LayerNorm.")
    lr_scale: float = Field(1.0, ge=0, description="The group's learning rate, as a share of the optimizer's.")

    @property
    def own(self) -> dict[str, Any]:
        """What the group sets otherwise than the optimizer does, by the names of the optimizer's fields."""
        return dict(self.model_extra or {})


class OptimizerArguments(StrictModel):
    """What all optimizers have."""

    target: ClassVar[str]  # module:class, imported only where it is built
    pairs: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # argument of the class: the fields that it is made of
    whole: ClassVar[frozenset[str]] = frozenset({"type", "lr", "groups", "fused"})  # fields that no group can have

    type: str
    lr: Rate = Field(description="The peak learning rate, or {value, at_batch, scale}: the rate at one global batch.")
    groups: list[Group] = Field([], description="Each {match, layer, lr_scale} and what it sets otherwise.")

    @property
    def factory(self) -> str:
        """What makes it, as `registry.resolve` takes it."""
        return self.target

    @property
    def momentum_field(self) -> str | None:
        """The field that a schedule of the momentum moves."""
        return next((name for name in ("momentum", "beta1") if name in type(self).model_fields), None)

    def keywords(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The class's arguments, without `lr`; of `values` alone (some fields' values) where they are given."""
        if values is None:
            values = {name: getattr(self, name) for name in type(self).model_fields}
        given = {name: value for name, value in values.items() if name not in self.whole}
        for argument, parts in self.pairs.items():
            if any(part in given for part in parts):
                given[argument] = tuple(given.pop(part, getattr(self, part)) for part in parts)
        if values.get("fused"):
            given["fused"] = True  # left out it is torch's choice, which False is not
        return given

    @model_validator(mode="after")
    def _groups_are_sound(self) -> Self:
        missing = problem("missing", "missing", allowed="match, layer or both")
        errors = [
            located(missing, ("groups", i), None)
            for i, group in enumerate(self.groups)
            if not group.match + group.layer
        ]
        for i, group in enumerate(self.groups):
            errors += [{**e, "loc": ("groups", i, *e.get("loc", ()))} for e in self._wrong_in(group)]
        if errors:
            raise ValidationError.from_exception_data("groups", errors)
        return self

    def _wrong_in(self, group: Group) -> list[InitErrorDetails]:
        """What is wrong with what a group sets; as a side effect it is what was validated: 0 and 0.0 are one."""
        allowed = type(self).model_fields.keys() - self.whole
        wrong = [key for key in group.own if key not in allowed]
        names = allowed | {"match", "layer", "lr_scale"}
        errors = [located(unknown(key, names, "unknown field"), (key,), key) for key in wrong]
        sound = {key: value for key, value in group.own.items() if key not in wrong}
        plain = {name: getattr(self, name) for name in allowed}
        try:
            made = type(self).model_validate({**plain, "type": self.type, **sound})
        except ValidationError as error:
            return [*errors, *(self._remedied(e) for e in error.errors(include_url=False))]
        (group.model_extra or {}).update({key: getattr(made, key) for key in sound})
        return errors


class Sgd(OptimizerArguments):
    """Stochastic gradient descent, with Nesterov's momentum unless told otherwise."""

    target = "torch.optim:SGD"

    type: Literal["sgd"] = "sgd"
    lr: Rate = Field(0.1, description="The peak learning rate, or {value, at_batch, scale}.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Where the schedule does not cycle it.")
    dampening: float = Field(0.0, ge=0, lt=1, description="Of the momentum.")
    nesterov: bool = Field(True, description="Nesterov's momentum.")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty.")
    fused: bool = Field(False, description="Torch's one-kernel step; under fp16 it spares a wait of the host.")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            message = "nesterov needs a momentum above 0" if self.momentum == 0 else "nesterov takes no dampening"
            error = problem("conflict", message, allowed="false, or a momentum and no dampening")
            raise ValidationError.from_exception_data("nesterov", [located(error, ("nesterov",), True)])
        return self


class _Adam(OptimizerArguments):
    pairs = {"betas": ("beta1", "beta2")}  # noqa: RUF012  # a ClassVar by its base

    lr: Rate = Field(1e-3, description="The peak learning rate, or {value, at_batch, scale}.")
    beta1: _Beta = Field(0.9, description="Decay of the first moment, where the schedule does not cycle it.")
    beta2: _Beta = Field(0.999, description="Decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty.")


class Adam(_Adam):
    """Kingma and Ba 2014, arXiv:1412.6980."""

    target = "torch.optim:Adam"

    type: Literal["adam"] = "adam"
    amsgrad: bool = Field(False, description="With the largest second moment so far.")
    decoupled_weight_decay: bool = Field(False, description="That of adamw.")
    fused: bool = Field(False, description="Torch's one-kernel step; under fp16 it spares a wait of the host.")


class AdamW(_Adam):
    """Adam with decoupled weight decay: Loshchilov and Hutter 2017, arXiv:1711.05101."""

    target = "torch.optim:AdamW"

    type: Literal["adamw"] = "adamw"
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")
    amsgrad: bool = Field(False, description="With the largest second moment so far.")
    fused: bool = Field(False, description="Torch's one-kernel step; under fp16 it spares a wait of the host.")


class NAdam(_Adam):
    """Adam with Nesterov's momentum: Dozat 2016."""

    target = "torch.optim:NAdam"

    type: Literal["nadam"] = "nadam"
    lr: Rate = Field(2e-3, description="The peak learning rate, or {value, at_batch, scale}.")
    momentum_decay: float = Field(4e-3, ge=0, description="How fast the momentum's own schedule decays.")
    decoupled_weight_decay: bool = Field(False, description="That of adamw.")


class RAdam(_Adam):
    """Adam that corrects its early variance: Liu et al. 2019, arXiv:1908.03265."""

    target = "torch.optim:RAdam"

    type: Literal["radam"] = "radam"
    decoupled_weight_decay: bool = Field(False, description="That of adamw.")


class Adamax(_Adam):
    """Adam with the infinity norm, arXiv:1412.6980."""

    target = "torch.optim:Adamax"

    type: Literal["adamax"] = "adamax"
    lr: Rate = Field(2e-3, description="The peak learning rate, or {value, at_batch, scale}.")


class Adagrad(OptimizerArguments):
    """Duchi et al. 2011."""

    target = "torch.optim:Adagrad"

    type: Literal["adagrad"] = "adagrad"
    lr: Rate = Field(1e-2, description="The peak learning rate, or {value, at_batch, scale}.")
    lr_decay: float = Field(0.0, ge=0, description="Its own decay of the rate, beside the schedule.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty.")
    initial_accumulator_value: float = Field(0.0, ge=0, description="What the sum of squares starts at.")
    eps: float = Field(1e-10, gt=0, description="Added to the denominator.")
    fused: bool = Field(False, description="Torch's one-kernel step, on the CPU.")


class Adadelta(OptimizerArguments):
    """Zeiler 2012, arXiv:1212.5701."""

    target = "torch.optim:Adadelta"

    type: Literal["adadelta"] = "adadelta"
    lr: Rate = Field(1.0, description="The peak learning rate, or {value, at_batch, scale}.")
    rho: float = Field(0.9, ge=0, le=1, description="Decay of the average of squared gradients.")
    eps: float = Field(1e-6, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty.")


class Adafactor(OptimizerArguments):
    """Shazeer and Stern 2018, arXiv:1804.04235: second moments by rows and columns."""

    target = "torch.optim:Adafactor"
    pairs = {"eps": ("eps1", "eps2")}  # noqa: RUF012  # a ClassVar by its base

    type: Literal["adafactor"] = "adafactor"
    lr: Rate = Field(1e-2, description="The peak learning rate, or {value, at_batch, scale}.")
    beta2_decay: float = Field(-0.8, le=0, description="The second moment's decay is 1 - step to this power.")
    eps1: float | None = Field(None, gt=0, description="Added to squared gradients; unset: the dtype's own.")
    eps2: float = Field(1e-3, gt=0, description="The least size of a weight that steps are measured by.")
    d: float = Field(1.0, ge=1, description="Where updates are clipped.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")


class RMSprop(OptimizerArguments):
    """Hinton 2012."""

    target = "torch.optim:RMSprop"

    type: Literal["rmsprop"] = "rmsprop"
    lr: Rate = Field(1e-2, description="The peak learning rate, or {value, at_batch, scale}.")
    alpha: float = Field(0.99, ge=0, lt=1, description="Decay of the average of squared gradients.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Where the schedule does not cycle it.")
    centered: bool = Field(False, description="Divide by the variance instead of the second moment.")


class Rprop(OptimizerArguments):
    """Riedmiller and Braun 1993: the signs of gradients alone; for full batches."""

    target = "torch.optim:Rprop"
    pairs = {"etas": ("eta_minus", "eta_plus"), "step_sizes": ("step_min", "step_max")}  # noqa: RUF012  # a ClassVar

    type: Literal["rprop"] = "rprop"
    lr: Rate = Field(1e-2, description="The first step's size; a schedule does not move it afterwards.")
    eta_minus: float = Field(0.5, gt=0, lt=1, description="Where the sign changes.")
    eta_plus: float = Field(1.2, gt=1, description="Where it stays.")
    step_min: float = Field(1e-6, gt=0, description="The smallest step.")
    step_max: float = Field(50.0, gt=0, description="The largest step.")


class Asgd(OptimizerArguments):
    """Averaged SGD: Polyak and Juditsky 1992."""

    target = "torch.optim:ASGD"

    type: Literal["asgd"] = "asgd"
    lr: Rate = Field(1e-2, description="The peak learning rate, or {value, at_batch, scale}.")
    lambd: float = Field(1e-4, ge=0, description="Decay term.")
    alpha: float = Field(0.75, ge=0, description="The power of its own decay of the rate.")
    t0: float = Field(1e6, ge=0, description="The step at which averaging begins.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty.")


class Lars(OptimizerArguments):
    """SGD whose rate follows each layer's ratio of weight to gradient: You et al. 2017, arXiv:1708.03888.

    Biases and normalization layers are best left out: `groups: [{layer: "BatchNorm*", weight_decay: 0, adapt: false}]`.
    """

    target = "relight_trainer.optimizers.lars:Lars"

    type: Literal["lars"] = "lars"
    lr: Rate = Field(1.0, description="The peak learning rate, or {value, at_batch, scale}.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Where the schedule does not cycle it.")
    nesterov: bool = Field(False, description="Nesterov's momentum.")
    weight_decay: float = Field(1e-4, ge=0, description="L2 penalty, inside the ratio.")
    trust: float = Field(1e-3, gt=0, description="The share of a layer's norm that a step at rate 1 moves it by.")
    eps: float = Field(1e-8, ge=0, description="Added to the denominator of the ratio.")
    adapt: bool = Field(True, description="false (in a group): plain SGD.")


class Lamb(OptimizerArguments):
    """Adam whose rate follows each layer's ratio of weight to update: You et al. 2019, arXiv:1904.00962."""

    target = "relight_trainer.optimizers.lamb:Lamb"
    pairs = {"betas": ("beta1", "beta2")}  # noqa: RUF012  # a ClassVar by its base

    type: Literal["lamb"] = "lamb"
    lr: Rate = Field(1e-3, description="The peak learning rate, or {value, at_batch, scale}.")
    beta1: _Beta = Field(0.9, description="Decay of the first moment, where the schedule does not cycle it.")
    beta2: _Beta = Field(0.999, description="Decay of the second moment.")
    eps: float = Field(1e-6, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay, inside the ratio.")
    max_norm: float = Field(10.0, gt=0, description="A layer's norm counts as at most this in the ratio.")
    adapt: bool = Field(True, description="false (in a group): plain AdamW.")


_OTHERS: Mapping[str, type[OptimizerArguments]] = {
    "sgd": Sgd,
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "radam": RAdam,
    "adamax": Adamax,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "adafactor": Adafactor,
    "rmsprop": RMSprop,
    "rprop": Rprop,
    "asgd": Asgd,
    "lars": Lars,
    "lamb": Lamb,
}


class Muon(OptimizerArguments):
    """Momentum, orthogonalized: Jordan 2024. For matrices only; all else, by its rules, is for the `others`."""

    target = "torch.optim:Muon"
    pairs = {"ns_coefficients": ("ns_a", "ns_b", "ns_c")}  # noqa: RUF012  # a ClassVar by its base

    whole = OptimizerArguments.whole | {"others", "but"}

    type: Literal["muon"] = "muon"
    lr: Rate = Field(1e-3, description="The peak learning rate, or {value, at_batch, scale}.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Where the schedule does not cycle it.")
    nesterov: bool = Field(True, description="Nesterov's momentum.")
    ns_a: float = Field(3.4445, description="The Newton-Schulz polynomial's coefficients.")
    ns_b: float = Field(-4.775, description="The second.")
    ns_c: float = Field(2.0315, description="The third.")
    ns_steps: int = Field(5, ge=1, lt=100, description="Its iterations.")
    eps: float = Field(1e-7, gt=0, description="For its first division.")
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = Field(
        None, description="How the rate follows a matrix's shape; unset is torch's original."
    )
    others: Annotated[SerializeAsAny[OptimizerArguments], kinds(_OTHERS), WithJsonSchema({"type": "object"})] | None = (
        Field(None, description="The optimizer of what is no matrix, with a rate of its own: {type: adamw, lr: 3e-4}.")
    )
    but: Patterns = Field([], description="Matrices for the others all the same: embeddings and the last layer.")

    @model_validator(mode="after")
    def _others_are_there(self) -> Self:
        if self.but and self.others is None:
            error = problem("missing", "missing", allowed="an optimizer for what `but` leaves to it")
            raise ValidationError.from_exception_data("others", [located(error, ("others",), None)])
        return self


class OwnOptimizer(OptimizerArguments):
    """A subclass of torch's Optimizer, called with the parameter groups, `lr` and the other fields."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(pattern=CUSTOM)

    @property
    def factory(self) -> str:
        return self.type

    @property
    def momentum_field(self) -> str | None:
        return next((name for name in ("momentum", "betas") if name in (self.model_extra or {})), None)

    def keywords(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return dict((self.model_extra or {}) if values is None else values)

    def _wrong_in(self, group: Group) -> list[InitErrorDetails]:  # noqa: ARG002  # the optimizer itself will say
        return []


OPTIMIZERS: Mapping[str, type[OptimizerArguments]] = {**_OTHERS, "muon": Muon}
OptimizerSettings = Annotated[SerializeAsAny[OptimizerArguments], kinds(OPTIMIZERS, OwnOptimizer)]
