"""Little models, data sets and hooks for configurations of tests, named in them as "little:NAME"."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from relight_trainer.checkpoint import pack
from relight_trainer.data.tensors import Samples
from relight_trainer.hooks import Hook
from relight_trainer.run import Run

WEIGHTS: dict[str, dict[str, Tensor]] = {}
SAID: dict[str, list[str]] = {}


class Perceptron(nn.Module):
    """4 numbers to 3 classes; `norm` and `dropout` between; a part that is `idle` gets no gradient."""

    def __init__(self, norm: bool = False, dropout: float = 0.0, idle: bool = False, double: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm: nn.Module = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(8, 3)
        if idle:
            self.idle = nn.Linear(2, 2)
        if double:
            self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.last(self.dropout(self.norm(self.first(inputs)).relu()))
        return output


def samples(count: int, double: bool = True, test: int = 7) -> tuple[Samples, Samples]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count + test, 4, generator=generator, dtype=torch.float64 if double else torch.float32)
    labels = torch.randint(0, 3, (count + test,), generator=generator)
    return Samples(inputs[:count], labels[:count]), Samples(inputs[count:], labels[count:])


class Noisy(torch.utils.data.Dataset[Any]):
    """Samples with noise on them, drawn anew for each visit."""

    def __init__(self, count: int) -> None:
        self.samples = samples(count, double=False)[0]

    def __len__(self) -> int:
        return self.samples.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.samples.inputs[index] + 0.1 * torch.randn(4), self.samples.labels[index]


def noisy(count: int) -> tuple[Noisy, None]:
    return Noisy(count), None


class Capture(Hook):
    """Keeps the weights of the training's end under `name`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run_end(self, run: Run) -> None:
        tensors = (*run.model.named_parameters(), *run.model.named_buffers())
        SAID[self.name] = list(run.session._notices)
        WEIGHTS[self.name] = {name: tensor.detach().clone() for name, tensor in tensors}


class Cut(Exception):
    """The training was cut here."""


class Keep(Hook):
    """Keeps the packed state of each step's end; `cut` ends the training without a word after so many steps."""

    order = 100
    states: ClassVar[dict[int, bytes]] = {}
    cut: ClassVar[int | None] = None

    def saved(self, run: Run) -> None:
        self.states[run.step] = bytes(pack(run.session._state()))
        if run.step == self.cut:
            raise Cut


class Watch(Hook):
    """Notes each step; the gradients of step `spoil` are made infinite."""

    seen: ClassVar[list[Any]] = []

    def __init__(self, spoil: int) -> None:
        self.spoil = spoil

    def gradients_ready(self, run: Run) -> None:
        if run.step + 1 == self.spoil:
            for group in run.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad.fill_(float("inf"))
            if run.scaler.is_enabled():  # what the scaler found when it unscaled them
                [state] = run.scaler._per_optimizer_states.values()
                for found in state["found_inf_per_device"].values():
                    found.fill_(1.0)

    def step_end(self, run: Run) -> None:
        assert run.loss is not None
        self.seen.append(
            {
                "step": run.step,
                "skipped": run.skipped,
                "taken": run.session._objects["updates"].state_dict()["taken"],
                "lr": run.optimizer.param_groups[0]["lr"],
                "scale": run.scaler.get_scale(),
                "weights": [p.detach().flatten().tolist() for p in run.model.parameters()],
                "loss": run.loss.item(),
            }
        )


class Ends(Hook):
    """Keeps a count of ends in its state, and notes when that is asked for."""

    noted: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.ends: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        self.noted.append("saved with " + " ".join(self.ends))
        return {"ends": [*self.ends]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ends = state["ends"]

    def step_end(self, run: Run) -> None:
        self.ends.append(f"step{run.step}")

    def epoch_end(self, run: Run) -> None:
        run.log({"epochs": str(run.session.cursor.epoch)})
        self.ends.append("epoch")

    def evaluation_begin(self, run: Run) -> None:
        self.ends.append("evaluation")


class OwnStep(Perceptron):
    """A model that computes its loss itself."""

    def training_step(self, batch: Any, run: Run) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self(batch[0]), batch[1])}


class Mappings(Noisy):
    def __getitem__(self, index: int) -> Any:
        inputs, label = super().__getitem__(index)
        return {"inputs": inputs, "label": label}


def mappings(count: int, double: bool = False) -> tuple[Mappings, None]:
    return Mappings(count), None


class Seen(Hook):
    """Notes the inputs of each step; ends the training without a word after `cut` steps."""

    order = 100
    inputs: ClassVar[dict[int, list[list[float]]]] = {}
    cut: ClassVar[int] = 0

    def run_begin(self, _: Run) -> None:
        self.inputs.clear()

    def data_ready(self, run: Run) -> None:
        self.inputs.setdefault(run.step, []).extend(run.batch[0].tolist())

    def saved(self, run: Run) -> None:
        if run.step == self.cut:
            raise Cut
