"""The emulator does to registers and memory what the Intel SDM says. Where the processor has the instructions, the same
tests look at the processor."""

from __future__ import annotations

import ctypes
import mmap
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from numerics import Array
from x86_emulator import INSTRUCTIONS, SOURCE, Emulation, available, emulated, native

pytestmark = pytest.mark.skipif(not available(), reason="needs Linux, AVX-512 and a C compiler")

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{i}" for i in range(8, 16)))
RSP = GENERAL.index("rsp")
DEFAULT_MXCSR = 0x1F80
MXCSRS = (DEFAULT_MXCSR, 0x5F80, 0x7F80, 0x9FC0, 0x1F80 & ~0x0080)
"""With other roundings, with denormals as zeros, and with an exception for what is not a number."""


def asserted_counts(emulation: Emulation, counts: dict[str, int]) -> None:
    """So many were emulated, of those that the processor has not."""
    flags = {name: "avx512_bf16" if name.startswith("v") else "amx_tile" for name in INSTRUCTIONS}
    assert emulation.counts() == {name: count for name, count in counts.items() if not native(flags[name])}


def library(source: str, suffix: str, *flags: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        text, path = Path(folder, f"code{suffix}"), Path(folder, "code.so")
        text.write_text(source)
        subprocess.run(["cc", "-O2", *flags, "-shared", "-fPIC", str(text), "-o", str(path)], check=True)
        return ctypes.CDLL(str(path))


# -- One instruction on all registers --

HARNESS = """
.text
.globl run
run:
    {push}
    pushq %rdx; pushq %rsi; pushq %rdi; pushq $0
    stmxcsr (%rsp); ldmxcsr {rsp}(%rdx)
    pushq %rcx
    {load}
    ret
leave:
    pushq %rdx
    movq 32(%rsp), %rdx
    {store}
    stmxcsr {rsp}(%rdx)
    popq %rax; movq %rax, {rdx}(%rdx)
    ldmxcsr (%rsp); popq %rax; popq %rdi; popq %rsi; popq %rdx
    {store_vectors}
    {pop}
    vzeroupper
    ret
.data
.balign 64
initial: .fill 24, 1, 0; .long {mxcsr}; .fill 548, 1, 0
constants: .fill 64, 1, 0xBF
.text
"""
"""`run(vectors, masks, general, body)` loads all registers (MXCSR in the place of rsp), runs a body, which jumps to
`leave`, and stores them again."""

FORGET = "pushq %rax; pushq %rdx; movl $0xE6, %eax; xorl %edx, %edx; xrstor initial(%rip); popq %rdx; popq %rax"
"""Vectors and masks are as a new process has them, which the processor knows and need not save."""
KEPT = ("rbx", "rbp", "r12", "r13", "r14", "r15")


def harness() -> str:
    vectors, masks = range(32), range(8)
    loaded = [i for i in range(16) if GENERAL[i] not in ("rsp", "rdx")]
    parts = {
        "push": [f"pushq %{name}" for name in KEPT], "pop": [f"popq %{name}" for name in reversed(KEPT)],
        "load": [
            *(f"vmovdqu64 {64 * i}(%rdi), %zmm{i}" for i in vectors), *(f"kmovq {8 * i}(%rsi), %k{i}" for i in masks),
            *(f"movq {8 * i}(%rdx), %{GENERAL[i]}" for i in loaded), f"movq {8 * GENERAL.index('rdx')}(%rdx), %rdx",
        ],
        "store": [f"movq %{GENERAL[i]}, {8 * i}(%rdx)" for i in loaded],
        "store_vectors": [
            *(f"vmovdqu64 %zmm{i}, {64 * i}(%rdi)" for i in vectors), *(f"kmovq %k{i}, {8 * i}(%rsi)" for i in masks),
        ],
    }  # fmt: skip
    texts = {name: "\n    ".join(lines) for name, lines in parts.items()}
    return HARNESS.format(**texts, rsp=8 * RSP, rdx=8 * GENERAL.index("rdx"), mxcsr=DEFAULT_MXCSR)


@dataclass
class State:
    vectors: Array
    masks: Array
    general: Array

    def copy(self) -> State:
        return State(self.vectors.copy(), self.masks.copy(), self.general.copy())


@dataclass(frozen=True)
class Memory:
    """An operand; without base, the `constants` relative to rip."""

    base: int | None
    offset: int = 0
    index: int | None = None
    scale: int = 1
    broadcast: bool = False

    def __str__(self) -> str:
        if self.base is None:
            return "constants(%rip)"
        index = "" if self.index is None else f", %{GENERAL[self.index]}, {self.scale}"
        return f"{self.offset or ''}(%{GENERAL[self.base]}{index})"

    def point(self, state: State, address: int) -> None:
        if self.base is not None:
            indexed = 0 if self.index is None else int(state.general[self.index]) * self.scale
            state.general[self.base] = (address - self.offset - indexed) % 2**64


@dataclass(frozen=True)
class Instruction:
    name: str
    bits: int
    target: int
    source: int
    operand: int | Memory
    mask: int = 0
    zeroing: bool = False
    before: str = ""

    def body(self) -> str:
        kind, name, half = {128: "xmm", 256: "ymm", 512: "zmm"}[self.bits], self.name, self.name == "vcvtneps2bf16"
        target = f"%{'ymm' if self.bits == 512 else 'xmm'}" if half else f"%{kind}"
        operand = f"%{kind}{self.operand}"
        if isinstance(self.operand, Memory):
            operand = f"{self.operand}{{1to{self.bits // 32}}}" if self.operand.broadcast else str(self.operand)
            name += kind[0] if half and self.bits < 512 else ""
        source = "" if half else f"%{kind}{self.source}, "
        mask = (f"{{%k{self.mask}}}" if self.mask else "") + ("{z}" if self.zeroing else "")
        return f"{self.before}; {name} {operand}, {source}{target}{self.target}{mask}; jmp leave"

    def expected(self, before: State, memory: bytes) -> State:
        after, count = before.copy(), self.bits // 32
        old, first = before.vectors[self.target], before.vectors[self.source].view(np.uint32)[:count]
        if not isinstance(self.operand, Memory):
            second = before.vectors[self.operand].view(np.uint32)[:count]
        elif self.operand.broadcast:
            second = np.full(count, np.frombuffer(memory[:4], np.uint32))
        else:
            second = np.frombuffer(memory[: 4 * count], np.uint32)
        if self.name == "vdpbf16ps":
            values = dot_pairs(old.view(np.uint32)[:count], first, second)
        else:
            values = rounded(second if self.name == "vcvtneps2bf16" else np.concatenate([second, first]))
        mask = (before.masks[self.mask] >> np.arange(len(values), dtype=np.uint64) & 1) if self.mask else np.uint64(1)
        kept = np.zeros_like(values) if self.zeroing else old.view(values.dtype)[: len(values)]
        result = np.where(mask, values, kept).view(np.uint8)
        after.vectors[self.target] = 0
        after.vectors[self.target, : len(result)] = result
        return after


def fused(x: Array, y: Array, z: Array) -> Array:
    """x × y + z in f32, with zeros for denormals. The products of bf16 are exact here."""
    x, y, z = (np.where(np.abs(a) < 2**-126, np.copysign(0, a), a).astype(np.longdouble) for a in (x, y, z))
    result = x * y + z
    small = np.abs(result) < np.longdouble(2) ** -126 - np.longdouble(2) ** -151
    return np.where(small, np.copysign(0, result), result).astype(np.float32)


def low(pairs: Array) -> Array:
    return (pairs << np.uint32(16)).view(np.float32)


def high(pairs: Array) -> Array:
    return (pairs & np.uint32(0xFFFF0000)).view(np.float32)


@np.errstate(all="ignore")
def dot_pairs(sums: Array, first: Array, second: Array) -> Array:
    value = fused(high(first), high(second), sums.view(np.float32))
    return fused(low(first), low(second), value).view(np.uint32)


@np.errstate(all="ignore")
def rounded(values: Array) -> Array:
    """bf16 of f32: ml_dtypes's, except that denormals become zeros and NaNs keep their bits."""
    floats = values.view(np.float32)
    flushed = np.where(np.abs(floats) < 2**-126, np.copysign(np.float32(0), floats), floats)
    result = flushed.astype(ml_dtypes.bfloat16).view(np.uint16)
    return np.where(np.isnan(floats), (values >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40), result)


def memories(draw: random.Random, bits: int) -> Memory:
    if draw.random() < 0.1:
        return Memory(None)
    base, index = draw.sample([i for i in range(16) if i != RSP], 2)
    broadcast = draw.random() < 0.3
    unit = 4 if broadcast else bits // 8
    offset = draw.choice((0, 0, unit, -unit, 127 * unit, -128 * unit, 128 * unit, -129 * unit, 1, -3, 4096))
    return Memory(base, offset, draw.choice((None, index)), draw.choice((1, 2, 4, 8)), broadcast)


def drawn_instructions(count: int) -> list[Instruction]:
    draw = random.Random(0)
    result = []
    for i in range(count):
        bits, mask = draw.choice((128, 256, 512)), draw.choice((0, *range(8)))
        operand = draw.choice((draw.randrange(32), memories(draw, bits)))
        zeroing = mask > 0 and draw.random() < 0.5
        before = FORGET if i % 10 == 0 else ""
        name = ("vdpbf16ps", "vcvtne2ps2bf16", "vcvtneps2bf16")[i % 3]
        result.append(Instruction(name, bits, draw.randrange(32), draw.randrange(32), operand, mask, zeroing, before))
    return result


DRAWN = drawn_instructions(1200)
STACK = "vmovdqu64 %zmm5, -128(%rsp); vdpbf16ps -128(%rsp), %zmm6, %zmm7; jmp leave"
"""Below the stack's end are 128 bytes that signals leave alone."""
FIXED = {
    "registers": Instruction("vdpbf16ps", 512, 1, 2, 3),
    "memory": Instruction("vdpbf16ps", 512, 1, 2, Memory(0), 1),
    "convert": Instruction("vcvtneps2bf16", 512, 1, 0, 2),
    "convert_two": Instruction("vcvtne2ps2bf16", 512, 1, 2, 3),
}


@cache
def bodies() -> ctypes.CDLL:
    texts = {f"body_{i}": instruction.body() for i, instruction in enumerate(DRAWN)}
    texts |= {name: instruction.body() for name, instruction in FIXED.items()} | {"stack": STACK}
    lines = (f".globl {name}\n{name}: {text}\n" for name, text in texts.items())
    return library(harness() + "".join(lines) + ".section .note.GNU-stack\n", ".S")


def run(body: str, before: State) -> State:
    after = before.copy()
    pointers = (ctypes.c_void_p(x.ctypes.data) for x in (after.vectors, after.masks, after.general))
    bodies().run(*pointers, ctypes.cast(getattr(bodies(), body), ctypes.c_void_p))
    return after


def drawn_floats(generator: np.random.Generator, count: int) -> Array:
    """f32, and pairs of bf16 likewise: of all sizes and of near 1, with infinities, NaNs, zeros, denormals, ties."""
    anything = generator.integers(0, 2**32, count, np.uint32)
    usual = generator.standard_normal(count).astype(np.float32).view(np.uint32)
    pairs = generator.standard_normal(2 * count).astype(ml_dtypes.bfloat16).view(np.uint32)
    halves = np.array([0, 0x8000, 0x3F80, 0x7F80, 0xFF80, 0x7FC1, 0x7F81, 0x0001, 0x8001, 0x7F7F, 0x0080], np.uint16)
    special = generator.choice(halves, 2 * count).view(np.uint32)
    ties = anything & np.uint32(0xFFFF0000) | np.uint32(0x8000)
    kinds = generator.choice(5, count, p=(0.1, 0.35, 0.35, 0.1, 0.1))
    return np.choose(kinds, (anything, usual, pairs, special, ties))


def drawn_state(seed: int) -> State:
    generator = np.random.default_rng(seed)
    vectors = drawn_floats(generator, 32 * 16).view(np.uint8).reshape(32, 64)
    general = generator.integers(-1000, 1000, 16).astype(np.uint64)
    general[RSP] = MXCSRS[seed % len(MXCSRS)]
    return State(vectors, generator.integers(0, 2**64, 8, np.uint64), general)


def assert_same(actual: State, expected: State, sums: int | None = None) -> None:
    """All registers are the same; of the f32 in the vector `sums`, all NaNs are."""
    if sums is not None:
        actual, expected = actual.copy(), expected.copy()
        for state in (actual, expected):
            floats = state.vectors[sums].view(np.float32)
            floats[np.isnan(floats)] = np.nan
    for i in range(32):
        x, y = (state.vectors[i].view(np.uint32) for state in (actual, expected))
        np.testing.assert_array_equal(x, y, f"zmm{i}")
    np.testing.assert_array_equal(actual.masks, expected.masks)
    np.testing.assert_array_equal(actual.general, expected.general)


def test_drawn_instructions() -> None:
    """Each changes its target as the SDM says, and no other register."""
    constants = bytes([0xBF]) * 64
    for i, instruction in enumerate(DRAWN):
        before = drawn_state(i)
        memory = drawn_floats(np.random.default_rng(i), 16)
        if isinstance(instruction.operand, Memory):
            instruction.operand.point(before, memory.ctypes.data)
        start = before.copy()
        if instruction.before:
            start.vectors[:], start.masks[:], start.general[RSP] = 0, 0, DEFAULT_MXCSR
        in_constants = isinstance(instruction.operand, Memory) and instruction.operand.base is None
        expected = instruction.expected(start, constants if in_constants else memory.tobytes())
        with emulated() as emulation:
            actual = run(f"body_{i}", before)
        asserted_counts(emulation, {instruction.name: 1})
        try:
            assert_same(actual, expected, instruction.target if instruction.name == "vdpbf16ps" else None)
        except AssertionError as mismatch:
            raise AssertionError(f"case {i}, {instruction.body()}\n{mismatch}") from None


def test_the_drawn_instructions_are_of_all_kinds() -> None:
    operands = [x.operand for x in DRAWN if isinstance(x.operand, Memory)]
    assert {x.base for x in operands} >= {None, *range(8, 16)}
    assert {x.index for x in operands} >= {None, *range(8, 16)}
    assert {x.target for x in DRAWN} == {x.source for x in DRAWN} == set(range(32))
    assert {x.operand for x in DRAWN} >= set(range(32))
    assert {(x.name, x.bits, bool(x.mask), x.zeroing) for x in DRAWN if isinstance(x.operand, Memory)} == {
        (name, bits, mask, zeroing)
        for name in ("vdpbf16ps", "vcvtne2ps2bf16", "vcvtneps2bf16")
        for bits in (128, 256, 512)
        for mask, zeroing in ((False, False), (True, False), (True, True))
    }


def test_memory_below_the_stack() -> None:
    before = drawn_state(0)
    with emulated():
        actual = run("stack", before)
    assert_same(actual, Instruction("vdpbf16ps", 512, 7, 6, 5).expected(before, b""), sums=7)


def guarded(count: int) -> Array:
    """That many f32, and nothing after them."""
    whole = np.frombuffer(mmap.mmap(-1, 2 * mmap.PAGESIZE), np.uint8)
    middle = whole.ctypes.data + mmap.PAGESIZE
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(middle), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    return whole[mmap.PAGESIZE - 4 * count : mmap.PAGESIZE].view(np.float32)


def test_what_the_mask_hides_is_not_read() -> None:
    before, memory = drawn_state(0), guarded(5)
    memory[:] = range(5)
    before.masks[1] = 0b10110
    before.general[0] = memory.ctypes.data
    with emulated():
        actual = run("memory", before)
    assert_same(actual, FIXED["memory"].expected(before, memory.tobytes() + bytes(44)), sums=1)


def lanes(*values: int) -> Array:
    return np.array([*values, *[0] * (16 - len(values))], np.uint32).view(np.uint8)


def test_conversions() -> None:
    """Of each special value; ties go to even numbers."""
    table = {
        0x3F800000: 0x3F80, 0x3F808000: 0x3F80, 0x3F808001: 0x3F81, 0x3F818000: 0x3F82, 0x3F817FFF: 0x3F81,
        0xBF818000: 0xBF82, 0x7F7F8000: 0x7F80, 0xFF7FFFFF: 0xFF80, 0x7F800000: 0x7F80, 0xFF800000: 0xFF80,
        0x7F800001: 0x7FC0, 0xFFC12345: 0xFFC1, 0x007FFFFF: 0x0000, 0x807FFFFF: 0x8000, 0x00800000: 0x0080,
        0x80000000: 0x8000,
    }  # fmt: skip
    before, wanted = drawn_state(0), np.array([*table.values()], np.uint16)
    before.vectors[2] = before.vectors[3] = lanes(*table)
    with emulated():
        half, whole = run("convert", before).vectors[1], run("convert_two", before).vectors[1]
    np.testing.assert_array_equal(half.view(np.uint16), [*wanted, *[0] * 16])
    np.testing.assert_array_equal(whole.view(np.uint16), [*wanted, *wanted])


def test_dot_products_of_special_values() -> None:
    """Sums of pairs, the upper first: NaNs by their priority, no denormals, fused, rounded to even."""
    table = [  # sum, first, second, result
        (0x7F800001, 0x7F82_7F83, 0x7F84_7F85, 0x7FC30000), (0x7F800001, 0x7F82_3F80, 0x7F84_7F85, 0x7FC50000),
        (0x7F800001, 0x7F82_3F80, 0x7F84_3F80, 0x7FC20000), (0x7F800001, 0x3F80_3F80, 0x7F84_3F80, 0x7FC40000),
        (0x7F800001, 0x3F80_3F80, 0x3F80_3F80, 0x7FC00001), (0x3F800000, 0x7F80_0000, 0x0000_0000, 0xFFC00000),
        (0x7F800000, 0xFF80_0000, 0x3F80_0000, 0xFFC00000), (0x3F800000, 0x3F80_3F80, 0x3400_3380, 0x3F800002),
        (0x00000001, 0x0000_0000, 0x0000_0000, 0x00000000), (0x80000001, 0x0000_8000, 0x8000_3F80, 0x80000000),
        (0x00000000, 0x0040_0000, 0x7F00_0000, 0x00000000), (0x00000000, 0x0000_0080, 0x0000_3F00, 0x00000000),
        (0x3F800000, 0x3F80_3F80, 0x3300_3380, 0x3F800000), (0x3F800000, 0x3F80_3F80, 0x3380_3400, 0x3F800001),
        # 2^-126 + 2^-149 - 2^-74 × 2^-75, which alone would be 0; -2^127 + 2^127 × 2, which would be infinite
        (0x00800001, 0x1A80_0000, 0x9A00_0000, 0x00800000), (0xFF000000, 0x7F00_0000, 0x4000_0000, 0x7F000000),
    ]  # fmt: skip
    before = drawn_state(0)
    sums, first, second, wanted = zip(*table, strict=True)
    before.vectors[1], before.vectors[2], before.vectors[3] = lanes(*sums), lanes(*first), lanes(*second)
    with emulated():
        actual = run("registers", before).vectors[1].view(np.uint32)
    assert [f"{x:08x}" for x in actual] == [f"{x:08x}" for x in wanted]


# -- Tiles --

TILES = """
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
int request(void) { return syscall(SYS_arch_prctl, 0x1023, 18); }
void configure(const void *at) { _tile_loadconfig(at); }
void configuration(void *at) { _tile_storeconfig(at); }
void release(void) { _tile_release(); }
void load(const void *at, long stride) { _tile_loadd(3, at, stride); }
void store(void *at, long stride) { _tile_stored(3, at, stride); }
void zero(void) { _tile_zero(3); }
void load_row(const void *at) { __asm__ volatile("tileloadd (%0), %%tmm3" :: "r"(at)); }
void load_far(const char *at, long stride) {
  register const char *base __asm__("r13") = at - 77;
  register long index __asm__("r12") = stride / 8;
  __asm__ volatile("tileloadd 77(%0, %1, 8), %%tmm3" :: "r"(base), "r"(index) : "memory");
}
void configure_far(const char *at) {
  register const char *base __asm__("r11") = at + 5000 - 24;
  register long index __asm__("r9") = 6;
  __asm__ volatile("ldtilecfg -5000(%0, %1, 4)" :: "r"(base), "r"(index) : "memory");
}
"""
PRODUCT = """
void product_{c}{a}{b}(const void *a, long a_stride, const void *b, long b_stride, void *c, long c_stride) {{
  _tile_loadd({c}, c, c_stride);
  _tile_stream_loadd({a}, a, a_stride);
  _tile_loadd({b}, b, b_stride);
  _tile_dpbf16ps({c}, {a}, {b});
  _tile_stored({c}, c, c_stride);
}}
"""
CHOICES = ((0, 1, 2), (7, 6, 5), (4, 0, 7), (1, 3, 0))


@cache
def code() -> ctypes.CDLL:
    products = "".join(PRODUCT.format(c=c, a=a, b=b) for c, a, b in CHOICES)
    loaded = library(TILES + products, ".c", "-mamx-tile", "-mamx-bf16")
    if native("amx_tile"):
        assert loaded.request() == 0  # Linux has the tiles of a process off until then
    return loaded


def config(shapes: dict[int, tuple[int, int]]) -> Array:
    """Of tiles with so many rows and bytes a row."""
    result = np.zeros(64, np.uint8)
    result[0] = 1
    for tile, (rows, width) in shapes.items():
        result[48 + tile], result[16 + 2 * tile] = rows, width
    return result


def at(x: Array) -> ctypes.c_void_p:
    """The address; the array lives as long as this does."""
    return x.ctypes.data_as(ctypes.c_void_p)


def stride(x: Array) -> ctypes.c_long:
    return ctypes.c_long(x.strides[0])


@np.errstate(all="ignore")
def product(a: Array, b: Array, c: Array) -> Array:
    """c + a·b of pairs: the sums of the even and of the odd ones, then both."""
    even, odd, one = np.zeros_like(c), np.zeros_like(c), np.ones_like(c)
    for k in range(a.shape[1]):
        left, right = np.broadcast_arrays(a[:, k : k + 1], b[k : k + 1])
        even, odd = fused(low(left), low(right), even), fused(high(left), high(right), odd)
    return fused(one, c, fused(one, even, odd))


def drawn_matrix(generator: np.random.Generator, rows: int, columns: int, spread: int) -> Array:
    """In a larger one, backwards now and then."""
    exponents = generator.integers(-spread, spread + 1, (20, 48))
    numbers = (generator.standard_normal((20, 48)) * 2.0**exponents).astype(ml_dtypes.bfloat16)
    whole = numbers.view(np.uint32)[:: generator.choice((-1, 1))]
    return whole[1 : 1 + rows, 3 : 3 + columns]


@pytest.mark.parametrize("seed", range(40))
def test_products_of_tiles(seed: int) -> None:
    generator = np.random.default_rng(seed)
    full = seed % 4 == 0
    m, n, k = (16 if full else int(x) for x in generator.integers(1, 17, 3))
    spread = int(generator.choice((0, 5, 40)))
    a, b = drawn_matrix(generator, m, k, spread), drawn_matrix(generator, k, n, spread)
    whole = generator.standard_normal((20, 24)).astype(np.float32)
    c, wanted = whole[2 : 2 + m, 4 : 4 + n], whole.copy()
    wanted[2 : 2 + m, 4 : 4 + n] = product(a, b, c)
    names = CHOICES[seed % len(CHOICES)]
    with emulated() as emulation:
        code().configure(at(config(dict(zip(names, ((m, 4 * n), (m, 4 * k), (k, 4 * n)), strict=True)))))
        getattr(code(), "product_{}{}{}".format(*names))(at(a), stride(a), at(b), stride(b), at(c), stride(c))
        code().release()
    np.testing.assert_array_equal(whole.view(np.uint32), wanted.view(np.uint32))
    asserted_counts(emulation, {"ldtilecfg": 1, "tileloadd": 3, "tdpbf16ps": 1, "tilestored": 1, "tilerelease": 1})


def test_products_of_special_values_in_tiles() -> None:
    """Infinities times zeros are NaNs, and there are zeros for denormals, of operands and of sums."""
    a, b, c = (np.zeros((1, 16), np.uint32) for _ in range(3))
    a[0, 0], b[0, :3], c[0, :4] = 0x7F80_3F80, (0x3F80_0000, 0x0000_3F80, 0x7FC0_0000), (0, 0, 0, 1)
    with emulated():
        code().configure(at(config({0: (1, 16), 1: (1, 4), 2: (1, 16)})))
        code().product_012(at(a), stride(a), at(b), stride(b), at(c), stride(c))
        code().configure(at(config({0: (1, 4), 1: (1, 4), 2: (1, 4)})))
        a[0, 0], b[0, 0], c[0, 4:6] = 0x0080_0001, 0x3F80_7F00, (0x80C00000, 5)  # 2^-126 - 1.5 × 2^-126
        code().product_012(at(a), stride(a), at(b), stride(b), at(c[:, 4:]), stride(c))
        code().release()
    floats = c.view(np.float32)[0]
    assert floats[0] == np.inf
    assert np.isnan(floats[1:4]).all()
    assert c[0, 4:6].tolist() == [0x80000000, 5]


def stored(rows: int, columns: int) -> Array:
    result = np.full((rows, columns), 77, np.uint32)
    code().store(at(result), stride(result))
    return result


def test_memory_of_tiles() -> None:
    x = np.arange(16 * 16, dtype=np.uint32).reshape(16, 16)
    with emulated() as emulation:
        code().configure(at(config({3: (9, 20)})))
        before = stored(9, 5)
        code().load(at(x), stride(x))
        loaded = stored(10, 6)
        code().load_row(at(x))
        row = stored(9, 5)
        code().load_far(at(x[1:]), stride(x))
        far = stored(9, 5)
        code().zero()
        zeroed = stored(9, 5)
        code().load(at(x), stride(x))
        code().configure(at(config({3: (2, 62)})))
        configured = stored(2, 16)
        code().load(at(x), ctypes.c_long(2))
        short = stored(2, 16)
        code().release()
    assert not before.any()
    assert (loaded[:9, :5] == x[:9, :5]).all()
    assert (loaded[9] == 77).all()
    assert (loaded[:, 5] == 77).all()
    assert (row == x[0, :5]).all()
    assert (far == x[1:10, :5]).all()
    assert not zeroed.any()
    assert configured[:, :15].tolist() == [[0] * 15] * 2
    assert short.view(np.uint16)[0].tolist() == [*x.view(np.uint16)[0, :31], 0]
    assert short.view(np.uint16)[1].tolist() == [*x.view(np.uint16)[0, 1:32], 0]
    asserted_counts(emulation, {"ldtilecfg": 2, "tileloadd": 5, "tilestored": 7, "tilezero": 1, "tilerelease": 1})


def test_configurations() -> None:
    def now() -> Array:
        result = np.full(64, 77, np.uint8)
        code().configuration(at(result))
        return result

    x, off = config({i: (16 - i, 64 - 4 * i) for i in range(8)}), np.zeros(64, np.uint8)
    with emulated() as emulation:
        code().release()
        first = now()
        code().configure(at(x))
        second = now()
        code().configure(at(off))
        third = now()
        code().configure_far(at(x))
        fourth = now()
        code().release()
        fifth = now()
    assert [first.tolist(), third.tolist(), fifth.tolist()] == [off.tolist()] * 3
    assert [second.tolist(), fourth.tolist()] == [x.tolist()] * 2
    asserted_counts(emulation, {"ldtilecfg": 3, "sttilecfg": 5, "tilerelease": 2})


def test_each_thread_has_its_tiles() -> None:
    barrier, results = threading.Barrier(5), dict[int, Array]()

    def work(i: int) -> None:
        x = np.full((16, 16), i, np.uint32)
        barrier.wait()
        if i:
            code().configure(at(config({3: (2 * i, 8 * i)})))
            barrier.wait()
            code().load(at(x), stride(x))
        else:
            barrier.wait()
        barrier.wait()
        if i:
            results[i] = stored(16, 16)
        else:
            results[i] = np.full(64, 77, np.uint8)
            code().configuration(at(results[i]))
        barrier.wait()
        code().release()

    code()
    with emulated() as emulation:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not results[0].any()
    for i in range(1, 5):
        wanted = np.full((16, 16), 77)
        wanted[: 2 * i, : 2 * i] = i
        np.testing.assert_array_equal(results[i], wanted)
    asserted_counts(emulation, {"ldtilecfg": 4, "tileloadd": 4, "tilestored": 4, "sttilecfg": 1, "tilerelease": 5})


def test_emulations_may_be_nested() -> None:
    before = drawn_state(0)
    with emulated() as outer:
        with emulated() as inner:
            run("registers", before)
            asserted_counts(inner, {"vdpbf16ps": 1})
        run("registers", before)
    asserted_counts(outer, {"vdpbf16ps": 2})


# -- What ends the process --

PROGRAM = """
#define _GNU_SOURCE
#include <immintrin.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
int install(void);
void uninstall(void);
#define DOT(second, others) __asm__ volatile(".byte 0xC4, 0xE2, " #second ", 0x5C, " #others)
static unsigned char config[64] = {1}, memory[4096];
static void shape(int tile, int rows, int bytes) {
  config[48 + tile] = rows; config[16 + 2 * tile] = bytes; config[17 + 2 * tile] = bytes >> 8;
}
static void usual(void) { shape(0, 4, 32); shape(1, 4, 16); shape(2, 4, 32); shape(3, 4, 32); }
static void configure(void) { usual(); _tile_loadconfig(config); }
static void skip(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)info;
  ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}
CASES
int main(int count, char **args) {
  static void (*const cases[])(void) = {NAMES};
  (void)count;
  syscall(SYS_arch_prctl, 0x1023, 18);
  if (install()) return 1;
  puts("begun"); fflush(stdout);
  cases[atoi(args[1])]();
  puts("ended"); fflush(stdout);
  return 0;
}
"""
ILLEGAL = {
    "ud2": '__asm__ volatile("ud2");',
    "unknown of AMX": '__asm__ volatile(".byte 0xC4, 0xE2, 0x79, 0x5D, 0xC1");',
    "unknown of AVX-512": '__asm__ volatile(".byte 0x62, 0xF2, 0x7E, 0x48, 0x53, 0xC1");',
    "broadcast of a register": '__asm__ volatile(".byte 0x62, 0xF2, 0x76, 0x58, 0x52, 0xC2");',
    "zeroing without mask": '__asm__ volatile(".byte 0x62, 0xF2, 0x76, 0xC8, 0x52, 0xC2");',
    "length 3": '__asm__ volatile(".byte 0x62, 0xF2, 0x76, 0x68, 0x52, 0xC2");',
    "wide elements": '__asm__ volatile(".byte 0x62, 0xF2, 0xF6, 0x48, 0x52, 0xC2");',
    "source of vcvtneps2bf16": '__asm__ volatile(".byte 0x62, 0xF2, 0x76, 0x48, 0x72, 0xC2");',
    "tilezero": "_tile_zero(0);",
    "tileloadd": "_tile_loadd(0, memory, 64);",
    "tilestored": "_tile_stored(0, memory, 64);",
    "tdpbf16ps": "_tile_dpbf16ps(0, 1, 2);",
    "after release": "configure(); _tile_zero(0); _tile_release(); _tile_zero(0);",
    "after palette 0": "configure(); config[0] = 0; _tile_loadconfig(config); _tile_zero(0);",
    "not of the configuration": "configure(); _tile_zero(0); _tile_zero(4);",
    "without SIB": 'configure(); __asm__ volatile(".byte 0xC4, 0xE2, 0x7B, 0x4B, 0x00" :: "a"(memory));',
    "tile 8": 'configure(); __asm__ volatile(".byte 0xC4, 0x62, 0x7B, 0x49, 0xC0");',
    "same target and first": "usual(); shape(0, 4, 16); shape(2, 4, 16); _tile_loadconfig(config); DOT(0x6A, 0xC0);",
    "same target and second": "configure(); DOT(0x7A, 0xC1);",
    "same operands": "usual(); shape(0, 4, 16); _tile_loadconfig(config); DOT(0x72, 0xC1);",
    "rows": "usual(); shape(1, 5, 16); _tile_loadconfig(config); _tile_dpbf16ps(0, 1, 2);",
    "columns": "usual(); shape(2, 4, 28); _tile_loadconfig(config); _tile_dpbf16ps(0, 1, 2);",
    "inner": "usual(); shape(1, 4, 20); _tile_loadconfig(config); _tile_dpbf16ps(0, 1, 2);",
    "half a column": "usual(); shape(0, 4, 30); shape(2, 4, 30); _tile_loadconfig(config); _tile_dpbf16ps(0, 1, 2);",
}  # fmt: skip
"""Instructions that the processor refuses with SIGILL."""
FAULTS = {
    "palette": "usual(); config[0] = 2; _tile_loadconfig(config);",
    "reserved": "usual(); config[15] = 1; _tile_loadconfig(config);",
    "bytes of tile 8": "usual(); config[32] = 4; _tile_loadconfig(config);",
    "rows of tile 8": "usual(); config[56] = 4; _tile_loadconfig(config);",
    "17 rows": "usual(); shape(5, 17, 4); _tile_loadconfig(config);",
    "65 bytes": "usual(); shape(5, 4, 65); _tile_loadconfig(config);",
    "260 bytes": "usual(); shape(5, 4, 260); _tile_loadconfig(config);",
    "no rows": "usual(); shape(5, 0, 4); _tile_loadconfig(config);",
    "no bytes": "usual(); shape(5, 4, 0); _tile_loadconfig(config);",
}
"""Configurations that the processor refuses with SIGSEGV, the emulator with SIGILL."""
NOWHERE = {
    "nowhere of vdpbf16ps": '__asm__ volatile("vdpbf16ps (%0), %%zmm1, %%zmm1" :: "r"(0L));',
    "nowhere of vcvtne2ps2bf16": """__asm__ volatile(
        "kxorq %%k1, %%k1, %%k1; vcvtne2ps2bf16 (%0), %%zmm1, %%zmm1%{%%k1%}" :: "r"(0L));""",
    "nowhere of tileloadd": "configure(); _tile_loadd(0, (void *)0, 64);",
    "nowhere of tilestored": "configure(); _tile_stored(0, (void *)0, 64);",
}
"""Operands that are not there; vcvtne2ps2bf16 reads what its mask hides."""
FINE = {
    "the same shapes": "configure(); _tile_dpbf16ps(0, 1, 2); _tile_dpbf16ps(3, 1, 2); _tile_release();",
    "no configuration": "usual(); config[0] = 0; memset(config + 16, 255, 48); _tile_loadconfig(config);",
    "a hidden operand": """__asm__ volatile(
        "kxorq %%k1, %%k1, %%k1; vdpbf16ps (%0), %%zmm1, %%zmm1%{%%k1%}" :: "r"(0L));""",
    "nested": """struct sigaction first, second;
      if (install()) exit(1);
      uninstall(); sigaction(SIGILL, NULL, &first); uninstall(); sigaction(SIGILL, NULL, &second);
      if (first.sa_handler == SIG_DFL || second.sa_handler != SIG_DFL) exit(2);""",
    "an earlier handler": """uninstall();
      struct sigaction action = {.sa_sigaction = skip, .sa_flags = SA_SIGINFO};
      sigaction(SIGILL, &action, NULL);
      if (install()) exit(1);
      __asm__ volatile("ud2"); _mm512_dpbf16_ps(_mm512_setzero_ps(), (__m512bh){0}, (__m512bh){0});
      __asm__ volatile("ud2"); uninstall(); __asm__ volatile("ud2");""",
}


CASES = {**ILLEGAL, **FAULTS, **NOWHERE, **FINE}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, with the emulator installed, the case of the number that it is given."""
    path = tmp_path_factory.mktemp("program") / "program"
    texts = "".join(f"static void case_{i}(void) {{ {text} }}\n" for i, text in enumerate(CASES.values()))
    names = ", ".join(f"case_{i}" for i in range(len(CASES)))
    path.with_suffix(".c").write_text(PROGRAM.replace("CASES", texts).replace("NAMES", names))
    flags = ("-O1", "-w", "-mamx-tile", "-mamx-bf16", "-mavx512bf16", "-mavx512bw")
    subprocess.run(["cc", *flags, str(path.with_suffix(".c")), "-c", "-o", str(path.with_suffix(".o"))], check=True)
    subprocess.run(["cc", "-O2", str(path.with_suffix(".o")), str(SOURCE), "-o", str(path)], check=True)
    return path


Ending = tuple[int, str, str]


@pytest.fixture
def ending(program: Path) -> Callable[[str], Ending]:
    """How the program ends in a case, what it printed, and what the emulator said."""

    def run_case(name: str) -> Ending:
        done = subprocess.run([program, str(list(CASES).index(name))], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return run_case


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_instructions_end_the_process(ending: Callable[[str], Ending], name: str) -> None:
    status, printed, _ = ending(name)
    assert (status, printed) == (-signal.SIGILL, "begun\n")


@pytest.mark.parametrize("name", FAULTS)
def test_bad_configurations_end_the_process(ending: Callable[[str], Ending], name: str) -> None:
    status, printed, said = ending(name)
    if native("amx_tile"):
        assert (status, printed) == (-signal.SIGSEGV, "begun\n")
    else:
        assert (status, printed, said[:24]) == (-signal.SIGILL, "begun\n", "x86_emulator: ldtilecfg:")


@pytest.mark.parametrize("name", NOWHERE)
def test_missing_memory_ends_the_process(ending: Callable[[str], Ending], name: str) -> None:
    assert ending(name) == (-signal.SIGSEGV, "begun\n", "")


@pytest.mark.parametrize("name", FINE)
def test_what_is_right_goes_on(ending: Callable[[str], Ending], name: str) -> None:
    assert ending(name) == (0, "begun\nended\n", "")


def test_a_wrong_use_of_tiles_is_told(ending: Callable[[str], Ending]) -> None:
    if not native("amx_tile"):
        assert ending("rows")[2] == "x86_emulator: tdpbf16ps: tiles of shapes that do not match\n"


ILLEGAL_IN_PYTHON = """
import ctypes, faulthandler, mmap
from x86_emulator import emulated
faulthandler.enable()
memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(bytes([0x0F, 0x0B]))
with emulated():
    print("begun", flush=True)
    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
"""


def test_python_tells_where_an_illegal_instruction_was() -> None:
    done = subprocess.run([sys.executable, "-c", ILLEGAL_IN_PYTHON], cwd=SOURCE.parent, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("begun\n", -signal.SIGILL)
    assert "Fatal Python error: Illegal instruction" in done.stderr
