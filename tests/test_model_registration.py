"""A model is compared with the contract when it is registered: errors name the mistake and the nearest name."""

import inspect
from types import ModuleType

import pytest

from replay import allocators
from replay.allocators import Counter, CounterKind, bump, constants_of, glibc, ideal, pymalloc
from replay.allocators._contract import (
    KERNELS,
    PARAMETERS,
    Constants,
    Model,
    OptionalKernels,
    OptionalPython,
    find_mistakes,
)  # fmt: skip


def module_like_bump(**changes) -> ModuleType:
    """Returns a module with bump's functions and State, and replacements; None removes a function."""
    model = ModuleType(bump.__name__)
    for name in ("Config", "State", "new_state", "malloc", "free", "block_size", "address", "grow"):
        setattr(model, name, getattr(bump, name))
    for name, function in changes.items():
        if function is None:
            delattr(model, name)
        else:
            function.__module__ = model.__name__
            setattr(model, name, function)
    return model


@pytest.mark.parametrize("model", [bump, glibc, ideal, pymalloc])
def test_the_bundled_models_keep_the_contract(model):
    assert find_mistakes(model) == []


def test_a_model_without_its_optional_functions_keeps_it_too():
    assert find_mistakes(module_like_bump(grow=None)) == []


def test_each_missing_function_is_named():
    assert find_mistakes(module_like_bump(free=None, new_state=None)) == ["lacks free", "lacks new_state"]


def test_a_misspelt_optional_function_is_an_error_not_a_silent_default():
    def made_sise(state, stack, place, size):
        return 0

    assert find_mistakes(module_like_bump(made_sise=made_sise)) == [
        "made_sise is not a function of the contract (did you mean 'made_size'?)"
    ]


def test_a_misspelt_function_of_a_submodule_is_found_too():
    def swich_thread(state, stack, thread):
        return 0

    model = module_like_bump(swich_thread=swich_thread)
    swich_thread.__module__ = f"{model.__name__}.threads"
    assert find_mistakes(model) == ["swich_thread is not a function of the contract (did you mean 'switch_thread'?)"]


@pytest.mark.parametrize("roles", ["libc", ("lib",), (), ["libc"]])
def test_unknown_roles_are_an_error(roles):
    model = module_like_bump()
    model.ROLES = roles
    assert find_mistakes(model) == [f"ROLES is {roles!r}; use a tuple of 'libc' and 'small'"]


@pytest.mark.parametrize(("name", "meant"), [("ROLE", "ROLES"), ("COUNTER", "COUNTERS")])
def test_a_misspelt_constant_is_an_error(name, meant):
    model = module_like_bump()
    setattr(model, name, ())
    assert find_mistakes(model) == [f"{name} is not a constant of the contract (did you mean {meant!r}?)"]


@pytest.mark.parametrize("name", ["extents_peak", "extents_at_peak", "extents_end"])
def test_a_counter_named_like_a_metric_of_a_level_is_an_error(name):
    model = module_like_bump()
    model.COUNTERS = (Counter("extents", CounterKind.LEVEL, "extents"), Counter(name, CounterKind.SUM, "others"))
    assert find_mistakes(model) == [
        f"the name of a counter, {name!r}, ends like a metric of a level (_peak, _at_peak, _end)"
    ]


def test_a_wrong_number_of_parameters_is_an_error():
    def trim(state, stack):
        return 0

    assert find_mistakes(module_like_bump(trim=trim)) == ["trim takes 3 parameters, not 2 (state, stack)"]


def test_a_helper_with_another_name_may_be_public():
    def pages_of(state, heap):
        return 0

    assert find_mistakes(module_like_bump(pages_of=pages_of)) == []


def test_a_state_of_another_module_is_an_error():
    model = module_like_bump()
    model.State = glibc.State
    assert find_mistakes(model) == ["must define its State class itself: kernels find the model by it"]


def test_a_constant_of_the_wrong_type_is_an_error():
    model = module_like_bump()
    model.ROUNDS_SIZES, model.VERIFIED = "no", None
    assert find_mistakes(model) == [
        "ROUNDS_SIZES is 'no'; use a value of the type bool",
        "VERIFIED is None; use a value of the type str",
    ]


def test_a_model_that_declares_no_constant_has_the_defaults():
    assert constants_of("bump") == Constants(ROLES=("libc",))
    assert constants_of("ideal") == Constants(ROLES=("libc",), ROUNDS_SIZES=False)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_call_a_function_with_the_parameters_that_its_contract_names(name):
    declared = [*inspect.signature(getattr(Model, name, None) or getattr(OptionalKernels, name)).parameters][1:]
    assert [*inspect.signature(getattr(allocators, name)).parameters] == declared
    default = getattr(allocators, f"default_{name}", None)
    assert (default is None) == hasattr(Model, name)
    assert default is None or [*inspect.signature(default).parameters] == declared


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_contract_describes_each_of_its_functions(name):
    owner = next(each for each in (Model, OptionalKernels, OptionalPython) if hasattr(each, name))
    assert getattr(owner, name).__doc__
