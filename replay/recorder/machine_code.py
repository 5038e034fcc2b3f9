"""Machine code made from Python, to be run in another process: LLVM comes with numba, a C compiler need not be there.

A `Body` writes one function, in which everything is a 64-bit word: numbers, addresses, truth (0 or 1). `assemble` makes
code of a module that is complete in itself and runs wherever it is put: no symbols, no relocations, no data.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

from llvmlite import binding, ir

WORD = ir.IntType(64)
WORD_POINTER = WORD.as_pointer()
_THREAD_REGISTER = 257
"""The address space in which LLVM puts what the register fs points to: in word 0 glibc and musl keep pthread_self()."""
_ANCHOR = "anchor"

Value: TypeAlias = ir.Value


class Code(NamedTuple):
    """Machine code, and where in it each exported function begins, by name."""

    text: bytes
    offsets: dict[str, int]


class Program:
    """Functions in the making; the code begins with an anchor, from which they know where they are."""

    def __init__(self) -> None:
        self.module = ir.Module("replay")
        self.anchor = ir.Function(self.module, ir.FunctionType(ir.VoidType(), []), _ANCHOR)
        self.anchor.linkage = "internal"
        ir.IRBuilder(self.anchor.append_basic_block()).ret_void()

    def function(self, name: str, arguments: int, attribute: str = "", linkage: str = "external") -> "Body":
        function = ir.Function(self.module, ir.FunctionType(WORD, [WORD] * arguments), name)
        function.linkage = linkage
        function.attributes.add("nounwind")
        if attribute:
            function.attributes.add(attribute)
        return Body(self, function)


class Body:
    """One function being written, from its start to its end."""

    def __init__(self, program: Program, function: ir.Function) -> None:
        self.program, self.function, self.arguments = program, function, function.args
        self._builder = ir.IRBuilder(function.append_basic_block())

    def near(self, offset: int) -> Value:
        """The address `offset` bytes from where the code begins."""
        return self.add(self._builder.ptrtoint(self.program.anchor, WORD), offset)

    def load(self, address: Value, offset: int = 0) -> Value:
        return self._builder.load(self._pointer(address, offset))

    def load_shared(self, address: Value, offset: int) -> Value:
        """Of a word that others change meanwhile."""
        return self._builder.load_atomic(self._pointer(address, offset), "acquire", 8)

    def store(self, address: Value, offset: int, value: Value | int) -> None:
        self._builder.store(_word(value), self._pointer(address, offset))

    def publish(self, address: Value, offset: int, value: Value | int) -> None:
        """Stores a word that others see only together with all that was stored before it."""
        self._builder.store_atomic(_word(value), self._pointer(address, offset), "release", 8)

    def claim(self, address: Value, offset: int, amount: Value | int = 1) -> Value:
        """Adds to a shared word; gives what it was."""
        return self._builder.atomic_rmw("add", self._pointer(address, offset), _word(amount), "seq_cst")

    def call(self, function: Value, *arguments: Value | int) -> Value:
        """Calls what is at an address, in C's way."""
        kind = ir.FunctionType(WORD, [WORD] * len(arguments))
        return self._builder.call(self._builder.inttoptr(function, kind.as_pointer()), list(map(_word, arguments)))

    def call_own(self, function: "Body", *arguments: Value | int) -> Value:
        return self._builder.call(function.function, list(map(_word, arguments)))

    def thread(self) -> Value:
        return self._builder.load(ir.Constant(WORD.as_pointer(_THREAD_REGISTER), None))

    def counter(self) -> Value:
        """The processor's count of time."""
        kind = ir.FunctionType(WORD, [])
        known = self.program.module.globals.get("llvm.readcyclecounter")
        return self._builder.call(known or ir.Function(self.program.module, kind, "llvm.readcyclecounter"), [])

    def room(self, words: int) -> Value:
        """The address of as many words on the stack."""
        with self._builder.goto_entry_block():
            return self._builder.ptrtoint(self._builder.alloca(WORD, words), WORD)

    def add(self, left: Value, right: Value | int) -> Value:
        return self._builder.add(left, _word(right))

    def subtract(self, left: Value | int, right: Value | int) -> Value:
        return self._builder.sub(_word(left), _word(right))

    def multiply(self, left: Value, right: Value | int) -> Value:
        return self._builder.mul(left, _word(right))

    def divide(self, left: Value, right: Value | int) -> Value:
        return self._builder.udiv(left, _word(right))

    def remainder(self, left: Value, right: Value | int) -> Value:
        return self._builder.urem(left, _word(right))

    def both(self, left: Value, right: Value | int) -> Value:
        return self._builder.and_(left, _word(right))

    def either(self, left: Value, right: Value | int) -> Value:
        return self._builder.or_(left, _word(right))

    def shift_left(self, value: Value, bits: int) -> Value:
        return self._builder.shl(value, WORD(bits))

    def shift_right(self, value: Value, bits: int) -> Value:
        return self._builder.lshr(value, WORD(bits))

    def low_half(self, value: Value) -> Value:
        """What C's int is of a returned word."""
        return self.both(value, 0xFFFFFFFF)

    def select(self, condition: Value, yes: int, no: int) -> Value:
        return self._builder.select(self._truth(condition), WORD(yes), WORD(no))

    def compare(self, left: Value, how: str, right: Value | int) -> Value:
        """1 or 0; `how` is one of C's operators, and words have no sign."""
        return self._builder.zext(self._builder.icmp_unsigned(how, left, _word(right)), WORD)

    @contextmanager
    def when(self, condition: Value, likely: bool | None = None) -> Iterator[None]:
        with self._builder.if_then(self._truth(condition), likely=likely):
            yield

    @contextmanager
    def repeat(self) -> Iterator[None]:
        """For ever: the body gives back a value, or leaves by `leave_when`."""
        start, self._end = self._builder.append_basic_block(), self._builder.append_basic_block()
        end = self._end
        self._builder.branch(start)
        self._builder.position_at_end(start)
        yield
        self._builder.branch(start)
        self._builder.position_at_end(end)

    def leave_when(self, condition: Value) -> None:
        """Ends the innermost `repeat`."""
        stay = self._builder.append_basic_block()
        self._builder.cbranch(self._truth(condition), self._end, stay)
        self._builder.position_at_end(stay)

    def give(self, value: Value | int) -> None:
        self._builder.ret(_word(value))

    def _truth(self, word: Value) -> Value:
        return self._builder.icmp_unsigned("!=", word, WORD(0))

    def _pointer(self, address: Value, offset: int) -> Value:
        return self._builder.inttoptr(self.add(address, offset) if offset else address, WORD_POINTER)


def _word(value: Value | int) -> Value:
    return WORD(value) if isinstance(value, int) else value


def assemble(program: Program) -> Code:
    """For the processor this runs on."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(opt=3, reloc="pic", codemodel="small")
    module = binding.parse_assembly(str(program.module))
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=2)
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return _code_of(machine.emit_object(module))


def _code_of(elf: bytes) -> Code:
    """The section `.text` of a 64-bit ELF object, which must not need a linker."""
    (sections_at,) = struct.unpack_from("<Q", elf, 0x28)
    count, names_index = struct.unpack_from("<HH", elf, 0x3C)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, sections_at + 64 * index) for index in range(count)]

    def text_at(table: int, at: int) -> str:
        start = headers[table][4] + at
        return elf[start : elf.index(b"\0", start)].decode()

    sections = {text_at(names_index, header[0]): header for header in headers}
    with_data = [name for name in (".rela.text", ".data", ".bss", ".rodata") if name in sections and sections[name][5]]
    if with_data:
        raise AssertionError(f"the code is not complete in itself: it has {' '.join(with_data)}")
    _, _, _, _, start, length, *_ = sections[".text"]
    _, _, _, _, symbols_at, symbols_length, names, *_ = sections[".symtab"]
    offsets = {}
    for at in range(symbols_at, symbols_at + symbols_length, 24):
        name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", elf, at)
        if name and section:
            offsets[text_at(names, name)] = value
    if offsets.get(_ANCHOR) != 0:
        raise AssertionError("the code does not begin with its anchor")
    return Code(elf[start : start + length], offsets)
