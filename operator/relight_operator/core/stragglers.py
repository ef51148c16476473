"""Members that hold the others up in every step, and by how much."""

from collections.abc import Collection, Mapping
from statistics import median

from relight_operator.api.status import StragglerStatus
from relight_operator.core.draft import Draft
from relight_operator.core.observed import AgentPace

# Of the time of a step: from here on a member is slow, and below this no longer.
SLOW, WELL_AGAIN = 0.2, 0.1
FACTOR = 1.3  # of the others' own work, at least
CONDITION = "Straggling"


def slow(paces: Mapping[int, AgentPace], before: Collection[int] = ()) -> dict[int, float]:
    """The share of each step that the job waits for a member, for those that are slow; by the keys of `paces`.

    It is what the member's own work takes longer than that of the others in the median. `before`: who was slow already.
    """
    found = {}
    for key, pace in paces.items():
        others = [p.own for k, p in paces.items() if k != key]
        if not others or pace.step <= 0.0:
            continue
        usual = median(others)
        share = (pace.own - usual) / pace.step
        if share >= (WELL_AGAIN if key in before else SLOW) and pace.own >= FACTOR * usual:
            found[key] = min(1.0, share)
    return found


def watch(draft: Draft) -> None:
    """Name members that become slow, once, and those that are well again; what is not measured stays as it is."""
    status, world = draft.status, draft.status.world
    if world is None:
        return
    ranks = {m.uid: m.rank for m in world.members}
    holders = {m.slot: m for m in draft.holders()}
    known = {s.slot: s for s in status.stragglers if s.slot in holders and holders[s.slot].uid == s.uid}
    agents = {slot: m.agent for slot, m in holders.items() if m.agent is not None}
    paces = {
        slot: agent.pace
        for slot, agent in agents.items()
        if agent.pace is not None and agent.pace.generation == world.generation
    }
    if len(paces) == len(world.members):
        found = slow(paces, known)
        for slot in found.keys() - known.keys():
            member = holders[slot]
            share = f"{found[slot]:.2f}"
            text = f"rank {paces[slot].rank}, node rank {ranks[member.uid]} on {member.machine or 'its machine'}"
            text += f", is slow: the others wait for it for {found[slot]:.0%} of each step".replace("%", " %")
            known[slot] = StragglerStatus(
                slot=slot, uid=member.uid, machine=member.machine, node_rank=ranks[member.uid], rank=paces[slot].rank,
                share=share, since=draft.now, message=text,
            )  # fmt: skip
            draft.event("Straggler", f"{draft.name(slot, member.incarnation)}: {text}", warning=True)
        known = {slot: s for slot, s in known.items() if slot in found}
    _show(draft, [known[slot] for slot in sorted(known)])


def _show(draft: Draft, stragglers: list[StragglerStatus]) -> None:
    before = draft.status.stragglers
    draft.status.stragglers = stragglers
    if stragglers and stragglers != before:
        draft.condition(CONDITION, "True", "SlowMember", "; ".join(s.message for s in stragglers))
    elif before and not stragglers:
        draft.condition(CONDITION, "False", "AllAlike", "no member is slower than the others")
