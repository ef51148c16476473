"""What the sizes of a job's worlds must fit: each other, and the batch of a step (at every size the one configured)."""

import math

from relight_operator.api.durations import seconds
from relight_operator.api.job import MAX_NODES, JobSpec
from relight_operator.api.problems import Problem, shown
from relight_trainer import config as trainer_config
from relight_trainer.config import TrainerConfig


def of_sizes(spec: JobSpec) -> list[Problem]:
    """What contradicts itself in nodes, elastic, spares and the times that belong to them."""
    problems, elastic = [], spec.elastic
    room = MAX_NODES - spec.most_nodes
    if spec.spares > room:
        beside = "nodes" if elastic is None else "elastic.maxNodes"
        message = f"too many beside {beside} {spec.most_nodes}: {MAX_NODES} members at most"
        problems.append(Problem("spec.spares", message, shown(spec.spares), f"{room} or less"))
    if elastic is None:
        return problems
    least, most = elastic.min_nodes, elastic.max_nodes
    if least > most:
        problems.append(Problem("spec.elastic.minNodes", "more than maxNodes", shown(least), f"{most} or less"))
    elif not least <= spec.nodes <= most:
        allowed = str(least) if least == most else f"{least} to {most}"
        problems.append(Problem("spec.nodes", "outside elastic's bounds", shown(spec.nodes), allowed))
    hold, patience = spec.disruption.hold_survivors, elastic.replacement_timeout
    if seconds(hold) <= seconds(patience):
        message = "survivors would be released before they may go on as fewer"
        allowed = f"more than elastic.replacementTimeout ({patience})"
        problems.append(Problem("spec.disruption.holdSurvivors", message, shown(hold), allowed))
    if spec.trainer.config is None and elastic.batch == "Exact" and least < most:
        message = "the batch of an own script or command follows its world, so that no other size is exact"
        problems.append(
            Problem("spec.elastic.batch", message, shown(elastic.batch), "Flexible, or minNodes = maxNodes")
        )
    return problems


def of_division(spec: JobSpec, config: TrainerConfig, path: str) -> list[Problem]:
    """`config`, at `path`, must keep the workers of the largest world busy, and divide a step alike in all of them."""
    train = config.train
    most = spec.most_nodes * spec.workers_per_node
    if config.sync_bn is not None or train.virtual_ranks == "auto" or train.virtual_ranks >= most:
        return []
    nodes = "nodes" if spec.elastic is None else "elastic.maxNodes"
    message = f"fewer than {nodes} {spec.most_nodes} x procPerNode {spec.workers_per_node} = {most} workers"
    found, allowed = shown(train.virtual_ranks), f"auto, {most} or more"
    return [Problem(f"{path}.train.virtual_ranks", message, found, allowed)]


def least_nodes(spec: JobSpec) -> tuple[int, str]:
    """The fewest members with which each step is what the configuration says; why not fewer, "" where any number will do.

    Plain batch norm sees the same micro-batches at every size, by virtual ranks. Sync BN's must be one forward, whose
    share of each worker grows as the world shrinks.
    """
    elastic = spec.elastic
    if elastic is None:
        return spec.nodes, "the job is not elastic"
    if spec.trainer.config is None or elastic.batch == "Flexible":
        return 1, ""
    config = trainer_config.parse(spec.trainer.config)
    train, each = config.train, spec.workers_per_node
    if config.sync_bn is None or train.micro_batch is None or train.accumulate != "auto":
        return 1, ""
    most = spec.most_nodes * each
    ranks = most if train.virtual_ranks == "auto" else train.virtual_ranks
    together = math.ceil(train.global_batch / train.micro_batches(ranks))
    least = math.ceil(math.ceil(together / train.micro_batch) / each)
    if least <= 1:
        return 1, ""
    return least, (
        f"with sync_bn, fewer than {least} members would take more than train.micro_batch {train.micro_batch} samples each in "
        "one forward pass: elastic.batch Flexible allows that"
    )
