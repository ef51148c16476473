"""What an exception says of itself, where that may fail: its methods are the user's code, and may raise as well."""

from collections.abc import Iterator

MAX_LINKS = 64  # of a chain of causes: a program that wraps an error anew at each try may make it as long as memory


def text_of(error: BaseException, limit: int) -> str:
    """`str(error)`, at most `limit` characters of it; what went wrong where `__str__` raises."""
    try:
        return str(error)[:limit]
    except BaseException as broken:  # `__str__` may raise anything, SystemExit too
        return f"<its __str__ raised {type(broken).__name__}>"


def type_of(error: BaseException) -> str:
    """The module and the name of the exception's type."""
    return f"{type(error).__module__}.{type(error).__qualname__}"


def attribute_of(error: BaseException, name: str) -> object:
    """The exception's attribute, None where there is none or `__getattr__` raises."""
    try:
        return getattr(error, name, None)
    except BaseException:  # as in text_of
        return None


def code_of(error: SystemExit) -> int | str | None:
    """What the script has given to `sys.exit`, as an interpreter takes it: a number, None, or the text of the rest.

    >>> code_of(SystemExit(3)), code_of(SystemExit(None)), code_of(SystemExit("no data")), code_of(SystemExit([1]))
    (3, None, 'no data', '[1]')
    """
    code = error.code
    if code is None or isinstance(code, int):
        return None if code is None else int(code)
    return code if isinstance(code, str) else text_of(error, 1 << 16)


def chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what it came from, the latest first: causes, contexts, and what a group of exceptions holds.

    At most MAX_LINKS of them, each once.
    """
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting and len(seen) < MAX_LINKS:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        if isinstance(link, BaseExceptionGroup):
            waiting += link.exceptions[:MAX_LINKS]
        before = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        if before is not None:
            waiting.append(before)
