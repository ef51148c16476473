"""The environment variables that Relight and torchrun set. A job cannot set them; nor can what it takes whole."""

from typing import List, MutableMapping

TORCHRUN = frozenset(
    (
        "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
        "ROLE_WORLD_SIZE", "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    )
)  # fmt: skip
RELIGHT = "RELIGHT_"
PREFIXES = ("MASTER_", "PET_", "TORCHELASTIC_", RELIGHT)
STORAGE = "RELIGHT_STORAGE_"  # before each key of the Secret of `checkpoint.secretRef`
# What a backend gives an agent. It sets each of them itself, so that no key of a Secret can take the place of one.
OF_AN_AGENT = frozenset(
    RELIGHT + name
    for name in (
        "JOB_FILE", "SLOT", "INCARNATION", "UID", "RUN_DIR", "ADDRESS", "COORDINATOR_URL", "TOKEN_FILE", "CA_FILE",
        "TERMINATION_LOG", "METRICS_PORT", "CHAOS_FILE", "LEARNED_OFF",
    )
)  # fmt: skip


def is_reserved(name: str) -> bool:
    return name in TORCHRUN or name.startswith(PREFIXES)


def leave_out(environment: MutableMapping[str, str]) -> List[str]:
    """Remove what has come by a key of a Secret or config map, or by the image, under a reserved name; the names.

    >>> environment = {"RANK": "7", "RELIGHT_SLOT": "0", "RELIGHT_STORAGE_key": "k", "PET_NNODES": "9", "LR": "1"}
    >>> leave_out(environment), sorted(environment)
    (['PET_NNODES', 'RANK'], ['LR', 'RELIGHT_SLOT', 'RELIGHT_STORAGE_key'])
    """
    strange = sorted(n for n in environment if is_reserved(n) and n not in OF_AN_AGENT and not n.startswith(STORAGE))
    for name in strange:
        del environment[name]
    return strange
