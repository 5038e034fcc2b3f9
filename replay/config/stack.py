"""The allocator stack as a typed configuration.

    name: cpython-3.12
    extends: cpython-3.11
    linux:    {page_size: 4 KiB, mmap_base: 0x7ffff7ff0000}
    glibc:    {version: "2.36", mmap_threshold: dynamic}
    pymalloc: {alignment: 16, arena_size: 1 MiB}
    domains:  {raw: glibc, mem: pymalloc, obj: pymalloc, libc: glibc}

A section is named after the model that it configures. `domains` has the model of each API of CPython; null stands for
the model of `libc`. That model has the *libc role*. At most one other model can be named; it has the *small role*, on
top of libc's.
"""

from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, create_model, model_validator

from replay.allocators import bundled_names, explain_unknown, find_model, model_names, roles
from replay.allocators.linux import Config as LinuxConfig


def _known(name: str) -> str:
    if name not in model_names():
        raise ValueError(explain_unknown(name))
    return name


ModelName = Annotated[str, AfterValidator(_known)]


class Domains(BaseModel):
    """The model of each API of CPython, and of native code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    raw: ModelName | None = Field(None, description="Model of PyMem_RawMalloc. null: the model of libc.")
    mem: ModelName | None = Field("pymalloc", description="Model of PyMem_Malloc. null: the model of libc.")
    obj: ModelName | None = Field("pymalloc", description="Model of PyObject_Malloc. null: the model of libc.")
    libc: ModelName = Field("glibc", description="Model of the C library's malloc, for native code and large blocks.")

    def by_number(self) -> tuple[str, str, str, str]:
        """Returns the models in the order of `replay.trace.Domain`."""
        return self.raw or self.libc, self.mem or self.libc, self.obj or self.libc, self.libc


Nanoseconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class Costs(BaseModel):
    """Costs in nanoseconds, for the estimate of simulated time. No other metric depends on them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    call: Nanoseconds = Field(12, description="One malloc, calloc, realloc or free on its fast path.")
    pool: Nanoseconds = Field(60, description="Initialisation of a pool for a size class.")
    syscall: Nanoseconds = Field(900, description="One system call: mmap, munmap, brk …")
    page_fault: Nanoseconds = Field(250, description="First touch of a page, including zeroing.")


class StackConfig(BaseModel):
    """An allocator stack: address space, a section for each model, and the model of each domain."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    extends: str | None = Field(None, description="Preset or file with the values that are not set here.")
    description: str = ""
    linux: LinuxConfig = LinuxConfig()
    domains: Domains = Domains()
    costs: Costs = Costs()
    _notes: tuple[str, ...] = PrivateAttr(())
    """Notes about the description of the stack; they are not part of the stack."""

    @model_validator(mode="after")
    def _roles_are_possible(self) -> "StackConfig":
        libc = self.domains.libc
        others = [model for model in dict.fromkeys(self.domains.by_number()) if model != libc]
        if len(others) > 1:
            raise ValueError(f"domains: {' and '.join(others)} cannot both be on top of {libc}; name one of them")
        for role, model in (("libc", libc), *(("small", other) for other in others)):
            if role not in roles(model):
                raise ValueError(f"domains: {model} has the role {roles(model)[0]} only, not {role}")
        return self

    @property
    def libc_model(self) -> str:
        """The model in the libc role."""
        return self.domains.libc

    @property
    def small_model(self) -> str | None:
        """The model in the small role; None where every domain is routed to the model of libc."""
        return next((model for model in self.domains.by_number() if model != self.domains.libc), None)

    @property
    def libc(self) -> Any:
        """The section of the model in the libc role, its `Config`."""
        return getattr(self, self.libc_model)

    @property
    def small(self) -> Any:
        """The section of the model in the small role, or None."""
        return self.small_model and getattr(self, self.small_model)

    @property
    def models(self) -> tuple[str, ...]:
        """The models in use, libc's first."""
        return (self.libc_model, self.small_model) if self.small_model else (self.libc_model,)

    @property
    def notes(self) -> list[str]:
        """Returns notes about settings that have no effect, or less than expected."""
        return [*self._notes, *(note for model in self.models for note in getattr(getattr(self, model), "notes", ()))]

    def title(self, model: str) -> str:
        """Returns the name of a model in use, with its version if it has one."""
        return " ".join(filter(None, (model, getattr(self.section(model), "version", ""))))

    def section(self, name: str) -> BaseModel | None:
        """Returns the section `name`; None if no domain uses this model."""
        found: BaseModel = getattr(self, name)
        return found if name in self.models or name not in model_names() else None

    def effective_settings(self) -> dict[str, Any]:
        """Returns all settings that results depend on, as JSON values, without sections of unused models."""
        unused = {name for name in type(self).model_fields if self.section(name) is None}
        settings = self.model_dump(mode="json", exclude={"name", "extends", "description", *unused})
        return settings | {"domains": self.domains.by_number()}


@cache
def stack_type(*models: str) -> type[StackConfig]:
    """Returns a subclass of StackConfig with a section for each bundled model and each of `models`."""
    configs = {name: find_model(name).Config for name in sorted({*bundled_names(), *models})}
    sections: Any = {name: (config, Field(default_factory=config)) for name, config in configs.items()}
    return create_model("StackConfig", __base__=StackConfig, __doc__=StackConfig.__doc__, **sections)
