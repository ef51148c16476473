"""The job's own code: one commit for all members, fixed by the first of them."""

from relight_operator.api.status import CodeStatus
from relight_operator.core.draft import Draft


def pin(draft: Draft) -> None:
    """Record the commit once it is known: named by the spec, or fetched by the first slot's member."""
    source, status = draft.seen.spec.code, draft.status
    if source is None or status.code is not None:
        return
    git = source.git
    if git.names_a_commit:
        status.code = CodeStatus(commit=git.ref)
        return
    member = draft.member(status.slots[0])
    commit = member.agent.commit if member is not None and member.agent is not None else ""
    if commit:
        status.code = CodeStatus(commit=commit)
        draft.event("CodePinned", f"{git.ref} of {git.url} is commit {commit} for this job")


def may_create(draft: Draft, slot: int, incarnation: int) -> bool:
    """Until an acknowledged status names the commit, only the first slot's member, and no successor of it: two that ask
    a server may be told two.
    """
    if draft.seen.spec.code is None or draft.seen.status.code is not None:
        return True
    first = draft.seen.status.slots[0]
    return (slot, incarnation) == (first.slot, first.incarnation)


def commit_to_fetch(draft: Draft) -> str:
    """What a member that is created now checks out; "" where that is for it to find out, or where there is no code."""
    code = draft.seen.status.code
    return code.commit if code is not None else ""
