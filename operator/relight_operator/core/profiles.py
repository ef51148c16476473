"""A trace of the running generation's next steps, once for each id that somebody names."""

from relight_operator.api.status import ProfileStatus
from relight_operator.core.draft import Draft


def ask(draft: Draft) -> None:
    """Record a new id with the generation that is to answer: one that forms later is not asked again for it."""
    status, wanted = draft.status, draft.seen.profile
    known = status.profile.id if status.profile is not None else ""
    if not wanted or wanted == known or status.world is None or status.recovery is not None:
        return  # while none runs, the wish stays
    status.profile = ProfileStatus(id=wanted, generation=status.world.generation)
    draft.event("ProfileRequested", f"{wanted}: generation {status.world.generation} traces its next steps")
