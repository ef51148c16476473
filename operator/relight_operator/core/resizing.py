"""A generation that runs stops at a step boundary, all members saved and kept, to go on with more of them or fewer."""

from relight_operator.api.durations import seconds
from relight_operator.api.status import ResizeStatus, WorldStatus
from relight_operator.core import slots, worlds
from relight_operator.core.draft import Draft


def resize(draft: Draft) -> None:
    """Sets `status.resize` when the present generation should be of another size and the next one can be formed at once."""
    status, spec = draft.status, draft.seen.spec
    world = status.world
    if world is None or status.recovery is not None or status.resize is not None or spec.elastic is None:
        return
    size = len(world.members)
    if size == spec.nodes or not _trains(draft, world):
        return
    joining = sum(
        not draft.in_world(s.uid) and (m := draft.member(s)) is not None and worlds.can_run(m)
        for s in slots.wanted_slots(draft)
    )
    if size < spec.nodes and not _may_grow(draft, world, joining):
        return
    status.resize = ResizeStatus(generation=world.generation, since=draft.now)
    target = spec.nodes if size > spec.nodes else min(spec.nodes, size + joining)
    draft.event("Resizing", f"generation {world.generation} stops at a step's end: {size} members become {target}")


def _may_grow(draft: Draft, world: WorldStatus, joining: int) -> bool:
    """All that were asked for by a new `nodes` join at once; who comes back later waits for the cooldown's end."""
    spec = draft.seen.spec
    assert spec.elastic is not None
    if joining == 0:
        return False
    if spec.nodes > world.wanted and joining >= spec.nodes - len(world.members):
        return True
    left = (world.formed_at or 0.0) + seconds(spec.elastic.grow_cooldown) - draft.now
    if left > 0:
        draft.wakeups.append(left)
    return left <= 0


def _trains(draft: Draft, world: WorldStatus) -> bool:
    """Whether every member is at work and the generation is past what the last one had done: who is asked to stop
    before it has begun would keep the others waiting.
    """
    runs = [m for m in draft.world_members() if m.alive and m.agent is not None and m.agent.state == "Running"]
    started = [m for m in runs if m.agent is not None and m.agent.generation == world.generation]
    # A script without the client says nothing of its steps.
    silent = draft.status.progress is None and draft.seen.spec.trainer.config is None
    return len(started) == len(world.members) and (world.recovered or silent)
