"""Generates machine code that another process runs. Uses the LLVM of numba, so no C compiler is necessary.

A `Body` generates one function. All its values are 64-bit words: numbers, addresses, conditions (0 or 1). `assemble`
returns position-independent code without symbols, relocations or data.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from llvmlite import binding, ir

from replay.recorder.hook_kinds import Code

WORD = ir.IntType(64)
WORD_POINTER = WORD.as_pointer()
_THREAD_REGISTER = 257
"""LLVM's address space for memory relative to the register fs. In its word 0, glibc and musl keep pthread_self()."""
_ANCHOR = "anchor"

Value: TypeAlias = ir.Value


class Program:
    """The functions of one piece of code. It begins with the function `anchor`, to which addresses are relative."""

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
    """Generates one function, instruction by instruction."""

    def __init__(self, program: Program, function: ir.Function) -> None:
        self.program, self.function, self.arguments = program, function, function.args
        self._builder = ir.IRBuilder(function.append_basic_block())
        self._end: ir.Block | None = None

    def code_relative(self, offset: int) -> Value:
        """Returns the address `offset` bytes from the start of the code."""
        return self.add(self._builder.ptrtoint(self.program.anchor, WORD), offset)

    def load(self, address: Value, offset: int = 0) -> Value:
        return self._builder.load(self._pointer(address, offset))

    def load_shared(self, address: Value, offset: int) -> Value:
        """Loads a word that other threads or processes change (acquire)."""
        return self._builder.load_atomic(self._pointer(address, offset), "acquire", 8)

    def store(self, address: Value, offset: int, value: Value | int) -> None:
        self._builder.store(_word(value), self._pointer(address, offset))

    def publish(self, address: Value, offset: int, value: Value | int) -> None:
        """Stores a word with release order: a reader that sees it also sees all earlier stores."""
        self._builder.store_atomic(_word(value), self._pointer(address, offset), "release", 8)

    def claim(self, address: Value, offset: int, amount: Value | int = 1) -> Value:
        """Adds to a shared word atomically; returns the earlier value."""
        return self._builder.atomic_rmw("add", self._pointer(address, offset), _word(amount), "seq_cst")

    def call(self, function: Value, *arguments: Value | int) -> Value:
        """Calls the C function at an address."""
        kind = ir.FunctionType(WORD, [WORD] * len(arguments))
        return self._builder.call(self._builder.inttoptr(function, kind.as_pointer()), list(map(_word, arguments)))

    def call_own(self, function: "Body", *arguments: Value | int) -> Value:
        return self._builder.call(function.function, list(map(_word, arguments)))

    def thread(self) -> Value:
        return self._builder.load(ir.Constant(WORD.as_pointer(_THREAD_REGISTER), None))

    def counter(self) -> Value:
        """Returns the processor's time stamp counter."""
        kind = ir.FunctionType(WORD, [])
        existing = self.program.module.globals.get("llvm.readcyclecounter")
        return self._builder.call(existing or ir.Function(self.program.module, kind, "llvm.readcyclecounter"), [])

    def stack_words(self, words: int) -> Value:
        """Returns the address of `words` words on the stack."""
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

    def bit_and(self, left: Value, right: Value | int) -> Value:
        return self._builder.and_(left, _word(right))

    def bit_or(self, left: Value, right: Value | int) -> Value:
        return self._builder.or_(left, _word(right))

    def shift_left(self, value: Value, bits: int) -> Value:
        return self._builder.shl(value, WORD(bits))

    def shift_right(self, value: Value, bits: int) -> Value:
        return self._builder.lshr(value, WORD(bits))

    def low_half(self, value: Value) -> Value:
        """Returns the low 32 bits of a word, e.g. of a returned C int."""
        return self.bit_and(value, 0xFFFFFFFF)

    def select(self, condition: Value, yes: int, no: int) -> Value:
        return self._builder.select(self._truth(condition), WORD(yes), WORD(no))

    def compare(self, left: Value, operator: str, right: Value | int) -> Value:
        """Returns 1 or 0. `operator` is an operator of C; words are unsigned."""
        return self._builder.zext(self._builder.icmp_unsigned(operator, left, _word(right)), WORD)

    @contextmanager
    def if_(self, condition: Value, likely: bool | None = None) -> Iterator[None]:
        with self._builder.if_then(self._truth(condition), likely=likely):
            yield

    @contextmanager
    def loop(self) -> Iterator[None]:
        """Repeats the block until it returns from the function or `break_if` ends the loop."""
        outer, start = self._end, self._builder.append_basic_block()
        self._end = end = self._builder.append_basic_block()
        self._builder.branch(start)
        self._builder.position_at_end(start)
        yield
        self._builder.branch(start)
        self._builder.position_at_end(end)
        self._end = outer

    def break_if(self, condition: Value) -> None:
        """Ends the innermost `loop` if the condition is not 0."""
        after = self._builder.append_basic_block()
        self._builder.cbranch(self._truth(condition), self._end, after)
        self._builder.position_at_end(after)

    def return_(self, value: Value | int) -> None:
        self._builder.ret(_word(value))

    def _truth(self, word: Value) -> Value:
        return self._builder.icmp_unsigned("!=", word, WORD(0))

    def _pointer(self, address: Value, offset: int) -> Value:
        return self._builder.inttoptr(self.add(address, offset) if offset else address, WORD_POINTER)


def _word(value: Value | int) -> Value:
    return WORD(value) if isinstance(value, int) else value


def assemble(program: Program) -> Code:
    """Compiles the program for the processor of this machine."""
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
    """Returns the section `.text` of a 64-bit ELF object; raises AssertionError if the code needs a linker."""
    (sections_at,) = struct.unpack_from("<Q", elf, 0x28)
    count, names_index = struct.unpack_from("<HH", elf, 0x3C)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, sections_at + 64 * index) for index in range(count)]

    def text_at(table: int, at: int) -> str:
        start = headers[table][4] + at
        return elf[start : elf.index(b"\0", start)].decode()

    sections = {text_at(names_index, header[0]): header for header in headers}
    with_data = [name for name in (".rela.text", ".data", ".bss", ".rodata") if name in sections and sections[name][5]]
    if with_data:
        raise AssertionError(f"the code is not self-contained: it has {' '.join(with_data)}")
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
