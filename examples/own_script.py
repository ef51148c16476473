"""A training script of one's own, on several nodes, made resumable by five lines (marked 1 to 5).

Without Relight it runs as it is: `python examples/own_script.py`.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from relight_trainer import client  # 1


def two_spirals(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    radius = torch.rand(count, generator=generator) * 3
    label = torch.arange(count) % 2
    angle = radius * 2 + label * torch.pi
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return TensorDataset(points + 0.05 * torch.randn(count, 2, generator=generator), label)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(
        *(nn.Linear(2, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=100, gamma=0.5)

    run = client.start(model=model, optimizer=optimizer, scheduler=scheduler, init=True)  # 2
    replica = run.wrap(model)  # 3

    data = two_spirals(2048)
    distributed = torch.distributed.is_initialized()
    loader = DataLoader(data, 64, sampler=DistributedSampler(data) if distributed else None, shuffle=not distributed)
    for points, labels in run.steps(loader, epochs=20):  # 4
        loss = cross_entropy(replica(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        run.log(loss=loss)  # 5

    model.eval()
    with torch.no_grad():
        points, labels = two_spirals(2048).tensors
        accuracy = (model(points).argmax(1) == labels).float().mean()
    run.log(accuracy=accuracy)
    print(f"accuracy {accuracy:.4f} after {run.step} steps", flush=True)


if __name__ == "__main__":
    main()
