"""What are a supernet's paths worth with the statistics that training leaves, and with their own? examples/supernet.yaml.

Each training runs as a user starts it. Then all paths are evaluated on the test set twice: as the checkpoint is, and
after recalibration. Kendall's tau says how far the two put the paths in the same order.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

import _runs
from relight_trainer.config import parse
from relight_trainer.data.draws import shard
from relight_trainer.data.splits import open_splits
from relight_trainer.evaluate import sums_of
from relight_trainer.init_from import init_from
from relight_trainer.objective import Objective
from relight_trainer.recalibrate import StatisticsCache, calibration_draws
from relight_trainer.registry import build
from relight_trainer.settings.init_from import InitFrom
from relight_trainer.settings.loss import LOSSES
from relight_trainer.settings.model import MODELS
from relight_trainer.supernet import Supernet, kendall_tau
from relight_trainer.supernet.ranking import measure, statistics_of

EXAMPLE = _runs.ROOT / "examples" / "supernet.yaml"


def train(folder: Path, sampler: str, seed: int) -> tuple[dict[str, Any], Path]:
    """The trainer's configuration, and the job's folder of checkpoints."""
    job = yaml.safe_load(EXAMPLE.read_text())
    config = job["spec"]["trainer"]["config"]
    config["train"]["seed"] = seed
    config["supernet"]["sampler"] = sampler
    file = folder / "supernet.yaml"
    file.write_text(yaml.safe_dump(job))
    final = _runs.finish(_runs.start(file, folder / "state", "--fresh"), timeout=3600.0)
    if final["code"] != 0:
        raise SystemExit(f"the training ended with {final['code']}: {folder / 'said'}")
    [last] = (folder / "state").glob("**/step-*.final")
    return config, last


def accuracies(values: dict[str, Any], checkpoint: Path) -> tuple[list[float], list[float]]:
    """Each path's accuracy on the test set, before and after recalibration."""
    config = parse(values)
    assert config.supernet is not None
    assert config.supernet.recalibrate is not None
    splits = open_splits(config.data, config.loader, config.train.seed, torch.device("cpu"))
    model = build(MODELS, config.model)
    init_from(InitFrom(path=str(checkpoint)), model)
    paths = Supernet(config.supernet, model, config.train.seed).candidates()
    sums = sums_of(model, Objective(build(LOSSES, config.loss)), run=None)

    def evaluated(statistics: Any) -> list[float]:
        draws = list(shard(splits.test.size, 0, 1, 256))
        batches = zip(splits.test.batches(draws), (len(draw.indices) for draw in draws), strict=True)
        names, totals = measure(paths, statistics, batches, sums)
        return (totals[:, 1 + names.index("accuracy")] / totals[:, 0]).tolist()

    settings = config.supernet.recalibrate
    draws = calibration_draws(splits.train.size, config.train.seed, samples=settings.samples, batch=settings.batch)
    own = statistics_of(paths, splits.train.batches(draws), lambda b: model(b[0]), StatisticsCache(model))
    return evaluated([{}] * len(paths.paths)), evaluated(own)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trainings for each sampler (default 3)")
    parser.add_argument(
        "--samplers", nargs="+", default=["uniform", "fair"], choices=["uniform", "fair", "sandwich"], help="which ones"
    )
    parser.add_argument(
        "--results", type=Path, default=_runs.RESULTS, help="folder for the result (default: %(default)s)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for sampler in arguments.samplers:
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory(prefix="relight-supernet-") as folder:
                before, after = accuracies(*train(Path(folder), sampler, seed))
            mean = [100 * sum(values) / len(values) for values in (before, after)]
            runs.append(
                {
                    "sampler": sampler,
                    "seed": seed,
                    "paths": len(before),
                    "before": mean[0],
                    "after": mean[1],
                    "worst": 100 * min(after),
                    "best": 100 * max(after),
                    "tau": kendall_tau(before, after),
                }
            )
            _runs.say(f"{sampler}, seed {seed}: {mean[0]:.1f} % -> {mean[1]:.1f} %, tau {runs[-1]['tau']:.2f}")
    heading = ("sampler", "seed", "paths", "mean % before", "mean % after", "worst path", "best path", "tau")
    rows = [[f"{v:.2f}" if isinstance(v, float) else v for v in run.values()] for run in runs]
    print(_runs.table([heading, *rows]))
    _runs.write(arguments.results, "supernet", {"runs": runs})
    low, high = (f([run["before"] for run in runs]) for f in (min, max))
    low_after, high_after = (f([run["after"] for run in runs]) for f in (min, max))
    print(
        f"supernet: mean accuracy {low:.0f}-{high:.0f} % before recalibration, {low_after:.0f}-{high_after:.0f} % after"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
