"""Where statements continue: whether they return, raise or yield."""

from replay.objects import language
from replay.objects.language import Statement


def never_completes(form: Statement) -> bool:
    """Whether a statement always returns or raises."""

    def never(body: list[Statement] | None) -> bool:
        return body is not None and len(body) > 0 and never_completes(body[-1])

    if isinstance(form, (language.Choose, language.IfKey, language.IfNone)):
        return never(form.do) and never(form.otherwise)
    if isinstance(form, language.Try):
        return never(form.finally_) or (never(form.try_) and (form.handle is None or never(form.handle)))
    return isinstance(form, (language.Return, language.Raise))


def returns(form: Statement) -> bool:
    """Whether a statement is or contains a `return`."""
    inner = ("do", "otherwise", "try_", "handle", "finally_")
    return isinstance(form, language.Return) or any(
        returns(each) for key in inner for each in getattr(form, key, None) or ()
    )


def has_yield(body: list[Statement]) -> bool:
    """Whether a function with these statements is a generator function."""
    keys = ("do", "otherwise", "try_", "handle", "finally_")
    inner = [
        each
        for form in body
        if not isinstance(form, language.Define)
        for key in keys
        for each in getattr(form, key, None) or ()
    ]
    return any(isinstance(form, language.Yield) for form in body) or (bool(inner) and has_yield(inner))
