"""Block-wise distillation (DNA, arXiv 1911.13053): a teacher, and a supernet that imitates it block by block.

Each block of the student has the same input as the teacher's block, what the teacher's blocks before it give, and learns
to give the same output. So blocks are trained one after the other, and a path is as good as the sum of its blocks.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from relight_trainer.supernet import Choice


class Blockwise(nn.Module):
    """Images (n, 1, 8, 8) of ten classes. `freeze` in the job's configuration says when which part trains."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.teacher = nn.ModuleList(
            [
                nn.Sequential(_convolution(1, width), _convolution(width, width)),
                nn.Sequential(nn.MaxPool2d(2), _convolution(width, 2 * width), _convolution(2 * width, 2 * width)),
            ]
        )
        self.teacher_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))
        self.student = nn.ModuleList(
            [
                nn.Sequential(_choice(1, width), nn.BatchNorm2d(width), nn.ReLU()),
                nn.Sequential(nn.MaxPool2d(2), _choice(width, 2 * width), nn.BatchNorm2d(2 * width), nn.ReLU()),
            ]
        )

    def training_step(self, batch: Any, run: Any) -> Tensor:  # noqa: ARG002
        """The loss of the teacher's classes and of each block. What is frozen gets no gradient of it."""
        images, labels = batch
        features, blocks = self._compared(images)
        return cross_entropy(self.teacher_head(features), labels) + torch.stack(blocks).sum()

    def validation_step(self, batch: Any, run: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """`loss` ranks the paths: how far the student's blocks are from the teacher's."""
        images, labels = batch
        features, blocks = self._compared(images)
        right = (self.teacher_head(features).argmax(1) == labels).double().mean()
        found = {f"block_{i}": loss for i, loss in enumerate(blocks)}
        return {"loss": torch.stack(blocks).sum(), "teacher_accuracy": right, **found}

    def _compared(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The teacher's last features, and for each block how far the student's output is from the teacher's."""
        features, losses = images, []
        for teacher, student in zip(self.teacher, self.student, strict=True):
            imitated = student(features.detach())
            features = teacher(features)
            losses.append(mse_loss(imitated, features.detach()))
        return features, losses


def _convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _choice(inputs: int, outputs: int) -> Choice:
    """Four convolutions: 3x3, 5x5, and the two with a 1x1 convolution after one for each channel."""

    def separable(kernel: int) -> nn.Module:
        each = nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=False)
        return nn.Sequential(each, nn.Conv2d(inputs, outputs, 1, bias=False))

    whole = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False) for kernel in (3, 5)]
    return Choice(*whole, separable(3), separable(5))
