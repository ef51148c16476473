"""The parts of a job, besides the configuration, that decide the trained weights: its script and environment variables.

Standard library only: what reads checkpoints runs in users' own images too.
"""

import hashlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

# Variables that say where things lie, who may fetch them, and what is logged. Any other may change the training.
HARMLESS_ENV = (
    *("HOME", "PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "XDG_*", "HF_HOME", "HF_TOKEN", "TORCH_HOME", "*_CACHE"),
    *("AWS_*", "GOOGLE_*", "AZURE_*", "WANDB_*", "MLFLOW_*", "NEPTUNE_*", "*_PROXY", "*_proxy", "SSL_*", "*_TOKEN", "*_API_KEY"),
    *("RELIGHT_*", "NCCL_DEBUG*", "NCCL_SOCKET_*", "GLOO_SOCKET_*", "NCCL_IB_*"),
    *("TORCH_LOGS*", "TORCH_CPP_LOG_LEVEL", "TORCH_DISTRIBUTED_DEBUG", "LOGLEVEL", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER"),
)  # fmt: skip


def is_harmless(variable: str) -> bool:
    """Whether another value of the environment variable leaves the training what it is.

    >>> [is_harmless(name) for name in ("WANDB_MODE", "LEARNING_RATE", "OMP_NUM_THREADS")]
    [True, False, False]
    """
    return any(fnmatchcase(variable, pattern) for pattern in HARMLESS_ENV)


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """Digests of those variables that may change the training, by name. A value may be a secret."""
    return {name: hashlib.sha256(env[name].encode()).hexdigest()[:12] for name in sorted(env) if not is_harmless(name)}


def identity(entry: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint records of a job file's `entry` and `env`, for `config_diff.differences`.

    `{"script": ["train.py", "--lr", "0.1"], "env": {"SEED": "6b86b273ff34"}}`; of the core, the configuration.
    """
    kind = entry["kind"]
    body: dict[str, Any] = dict(entry["config"]) if kind == "config" else {kind: list(entry["argv"])}
    named = variables(env)
    return {**body, "env": named} if named else body
