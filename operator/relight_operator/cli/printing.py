"""Text of others on a terminal of ours."""

from rich.markup import escape

from relight_agent.files import plain


def shown(text: str) -> str:
    """`text` for a rich console: as it is, without markup, and without what a terminal would obey."""
    return escape(plain(text))
