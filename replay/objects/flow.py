"""Where statements continue: whether they return, raise or yield."""

from replay.objects import language
from replay.objects.language import Statement


def blocks(form: object) -> list[list[Statement]]:
    """Returns the lists of statements in a statement."""
    keys = ("do", "otherwise", "try_", "finally_")
    found = [getattr(form, key, None) or [] for key in keys]
    return found + [each.handle for each in (form.clauses if isinstance(form, language.Try) else ())]


def never_completes(form: Statement) -> bool:
    """Whether a statement always returns or raises."""

    def never(body: list[Statement] | None) -> bool:
        return body is not None and len(body) > 0 and never_completes(body[-1])

    if isinstance(form, (language.Choose, language.IfKey, language.IfNone)):
        return never(form.do) and never(form.otherwise)
    if isinstance(form, language.Try):
        return never(form.finally_) or all(map(never, [form.try_, *(each.handle for each in form.clauses)]))
    return isinstance(form, (language.Return, language.Raise))


def returns(form: Statement) -> bool:
    """Whether a statement is or contains a `return`."""
    if isinstance(form, language.Define):
        return False
    return isinstance(form, language.Return) or any(returns(each) for body in blocks(form) for each in body)


def has_yield(body: list[Statement]) -> bool:
    """Whether a function with these statements is a generator function."""
    inner = [each for form in body if not isinstance(form, language.Define) for own in blocks(form) for each in own]
    yields = (language.Yield, language.YieldFrom)
    return any(isinstance(form, yields) for form in body) or (bool(inner) and has_yield(inner))
