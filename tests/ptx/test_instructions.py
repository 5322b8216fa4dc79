"""Each instruction of the interpreter in every lane, against numbers of Python's own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from cuda_host.backend import cannot_build
from support.ptx_snippets import each, entry, launch

pytestmark = pytest.mark.skipif(cannot_build() is not None, reason=str(cannot_build()))

RANDOM = np.random.default_rng(0)
SPECIAL = [0.0, -0.0, 1.0, -1.5, 1e-45, -1e-39, 1.1754944e-38, 3.4028235e38, np.inf, -np.inf, np.nan, 2.5, 3.5, 1e10]


def wholes(dtype: str, count: int = 96) -> np.ndarray:
    """The ends of the type, small numbers, and any."""
    info = np.iinfo(dtype)
    some = [0, 1, 2, 3, 7, info.max, info.min, info.max - 1, info.max // 3]
    some += [-1, -2, -7] if info.min < 0 else [info.max // 2 + 1]
    drawn = RANDOM.integers(info.min, info.max, count - len(some), dtype, endpoint=True)
    return RANDOM.permutation(np.concatenate([np.array(some, dtype), drawn]))


def reals(dtype: str, count: int = 96) -> np.ndarray:
    some = np.array(SPECIAL, dtype)
    drawn = RANDOM.standard_normal(count - len(some)) * 10.0 ** RANDOM.integers(-6, 7, count - len(some))
    return RANDOM.permutation(np.concatenate([some, drawn.astype(dtype)]))


def bits_of(x: int, size: int) -> int:
    return x & ((1 << size) - 1)


def wrapped(x: int, dtype: str) -> int:
    """As the type holds it."""
    size = np.dtype(dtype).itemsize * 8
    low = bits_of(x, size)
    return low - (1 << size) if dtype[0] == "i" and low >> (size - 1) else low


def quotient(a: int, b: int) -> int:
    return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def highest(x: int, size: int) -> int:
    x = ~x if x < 0 else x
    return x.bit_length() - 1 if x else (1 << size) - 1


def field(a: int, at: int, length: int, size: int, signed: bool) -> int:
    at, length = at & 255, length & 255
    if length == 0:
        return 0
    # Beyond its end the number goes on with its sign, or with zeros.
    long = a >> min(at, size) if signed else bits_of(a, size) >> at
    picked = bits_of(long, length)
    return picked - (1 << length) if signed and picked >> (length - 1) & 1 else picked


def permuted(a: int, b: int, selector: int) -> int:
    picked = bytes(((b << 32 | a) >> (8 * (selector >> 4 * k & 7))) & 255 for k in range(4))
    return int.from_bytes(
        bytes((255 if x >> 7 else 0) if selector >> 4 * k & 8 else x for k, x in enumerate(picked)), "little"
    )


SMALL = np.array(RANDOM.integers(0, 40, 96), "u4")
NIBBLES = np.array(RANDOM.integers(0, 1 << 16, 96), "u4")
# instruction: result, operands, function of Python's whole numbers
WHOLE: dict[str, tuple[str, tuple[Any, ...], Callable[..., int]]] = {
    "add.s32": ("i4", ("i4", "i4"), lambda a, b: a + b),
    "add.u16": ("u2", ("u2", "u2"), lambda a, b: a + b),
    "sub.s64": ("i8", ("i8", "i8"), lambda a, b: a - b),
    "mul.lo.s32": ("i4", ("i4", "i4"), lambda a, b: a * b),
    "mul.lo.u64": ("u8", ("u8", "u8"), lambda a, b: a * b),
    "mul.hi.s32": ("i4", ("i4", "i4"), lambda a, b: a * b >> 32),
    "mul.hi.u64": ("u8", ("u8", "u8"), lambda a, b: a * b >> 64),
    "mul.wide.s32": ("i8", ("i4", "i4"), lambda a, b: a * b),
    "mul.wide.u16": ("u4", ("u2", "u2"), lambda a, b: a * b),
    "mad.lo.s32": ("i4", ("i4", "i4", "i4"), lambda a, b, c: a * b + c),
    "mad.hi.u32": ("u4", ("u4", "u4", "u4"), lambda a, b, c: (a * b >> 32) + c),
    "mad.wide.u32": ("u8", ("u4", "u4", "u8"), lambda a, b, c: a * b + c),
    "div.s32": ("i4", ("i4", "i4"), lambda a, b: quotient(a, b) if b else -1),
    "div.u64": ("u8", ("u8", "u8"), lambda a, b: a // b if b else -1),
    "rem.s64": ("i8", ("i8", "i8"), lambda a, b: a - quotient(a, b) * b),
    "min.s64": ("i8", ("i8", "i8"), min),
    "max.u32": ("u4", ("u4", "u4"), max),
    "neg.s32": ("i4", ("i4",), lambda a: -a),
    "abs.s64": ("i8", ("i8",), abs),
    "and.b32": ("u4", ("u4", "u4"), lambda a, b: a & b),
    "or.b64": ("u8", ("u8", "u8"), lambda a, b: a | b),
    "xor.b16": ("u2", ("u2", "u2"), lambda a, b: a ^ b),
    "not.b32": ("u4", ("u4",), lambda a: ~a),
    "shl.b32": ("u4", ("u4", SMALL), lambda a, n: a << n),
    "shl.b64": ("u8", ("u8", SMALL * 2), lambda a, n: a << n),
    "shr.u32": ("u4", ("u4", SMALL), lambda a, n: a >> n),
    "shr.s32": ("i4", ("i4", SMALL), lambda a, n: a >> n),
    "popc.b64": ("u4", ("u8",), lambda a: a.bit_count()),
    "clz.b32": ("u4", ("u4",), lambda a: 32 - a.bit_length()),
    "brev.b32": ("u4", ("u4",), lambda a: int(f"{a:032b}"[::-1], 2)),
    "bfind.u32": ("u4", ("u4",), lambda a: highest(a, 32)),
    "bfind.s64": ("u4", ("i8",), lambda a: highest(a, 32)),
    "bfind.shiftamt.u32": ("u4", ("u4",), lambda a: 31 - highest(a, 32) if a else -1),
    "bfe.u32": ("u4", ("u4", SMALL, SMALL[::-1].copy()), lambda a, at, n: field(a, at, n, 32, False)),
    "bfe.s32": ("i4", ("i4", SMALL, SMALL[::-1].copy()), lambda a, at, n: field(a, at, n, 32, True)),
    "prmt.b32": ("u4", ("u4", "u4", NIBBLES), permuted),
    "shf.l.wrap.b32": ("u4", ("u4", "u4", SMALL), lambda a, b, n: (b << 32 | a) << (n & 31) >> 32),
    "shf.r.clamp.b32": ("u4", ("u4", "u4", SMALL), lambda a, b, n: (b << 32 | a) >> min(n, 32)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name):
    result, operands, function = WHOLE[name]
    arrays = [wholes(x) if isinstance(x, str) else x for x in operands]
    got = each(f"{name} {{d}}, {', '.join(f'{{{k}}}' for k in 'abc'[: len(arrays)])};", result, *arrays)
    wanted = [wrapped(function(*map(int, row)), result) for row in zip(*arrays, strict=True)]
    assert got.tolist() == wanted


def test_insert_a_field():
    a, b = wholes("u4"), wholes("u4")
    mask = ((1 << 11) - 1) << 7
    np.testing.assert_array_equal(
        each("bfi.b32 {d}, {a}, {b}, 7, 11;", "u4", a, b), (b & ~np.uint32(mask)) | (a << 7 & mask)
    )


def test_lookup_of_three_bits():
    a, b, c = wholes("u4"), wholes("u4"), wholes("u4")
    np.testing.assert_array_equal(each("lop3.b32 {d}, {a}, {b}, {c}, 0xCA;", "u4", a, b, c), (a & b) | (~a & c))


# Floating-point numbers: rounded from exact fractions.


def rounded(x: Fraction, mode: str, dtype: str) -> Any:
    number = np.dtype(dtype).type
    largest = Fraction(float(np.finfo(dtype).max))
    with np.errstate(over="ignore"):
        below = number(float(x)) if abs(x) <= largest else number(math.copysign(np.inf, x))
        while not math.isfinite(below) or Fraction(float(below)) > x:
            below = np.nextafter(below, number(-np.inf))
            if not math.isfinite(below):
                break
        above = below
        while math.isfinite(above) and Fraction(float(above)) < x:
            above = np.nextafter(above, number(np.inf))
    if above == below or mode == "rm" or (mode == "rz" and x > 0):
        return below
    if mode == "rp" or mode == "rz":
        return above
    to_below, to_above = x - Fraction(float(below)), Fraction(float(above)) - x
    if to_below != to_above:
        return below if to_below < to_above else above
    return below if int(below.view(f"u{below.itemsize}")) % 2 == 0 else above


def finite(dtype: str) -> np.ndarray:
    """Whose products are neither too large nor too small."""
    return (RANDOM.standard_normal(96) * 2.0 ** RANDOM.integers(-20, 20, 96)).astype(dtype)


EXACT: dict[str, Callable[..., Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": lambda a, b, c: a * b + c,
    "div": lambda a, b: a / b,
    "rcp": lambda a: 1 / a,
}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", EXACT)
def test_roundings(name, mode, dtype):
    function = EXACT[name]
    arrays = [finite(dtype) for _ in range(function.__code__.co_argcount)]
    operands = ", ".join(f"{{{k}}}" for k in "abc"[: len(arrays)])
    got = each(f"{name}.{mode}.f{8 * int(dtype[1])} {{d}}, {operands};", dtype, *arrays)
    wanted = [rounded(function(*(Fraction(float(x)) for x in row)), mode, dtype) for row in zip(*arrays, strict=True)]
    np.testing.assert_array_equal(got, np.array(wanted))


@pytest.mark.parametrize(
    ("name", "function"), [("min", np.fmin), ("max", np.fmax), ("min.NaN", np.minimum), ("max.NaN", np.maximum)]
)
def test_extremes(name, function):
    a, b = np.array(list(itertools.product(SPECIAL, SPECIAL)), "f4").T.copy()
    got, wanted = each(f"{name}.f32 {{d}}, {{a}}, {{b}};", "f4", a, b), function(a, b)
    np.testing.assert_array_equal(got, wanted)
    zeros = (a == 0) & (b == 0)
    both = np.signbit(a) | np.signbit(b) if name.startswith("min") else np.signbit(a) & np.signbit(b)
    np.testing.assert_array_equal(np.signbit(got[zeros]), both[zeros])


def test_small_numbers_are_flushed_where_it_is_asked_for():
    a, b = np.array([1e-39, -1e-39, 2e-38, 1.0], "f4"), np.array([1.0, 1.0, -1.5e-38, 1e-39], "f4")
    np.testing.assert_array_equal(each("mul.rn.f32 {d}, {a}, {b};", "f4", a, b), a * b)
    np.testing.assert_array_equal(each("add.rn.ftz.f32 {d}, {a}, {b};", "f4", a, b), np.array([1, 1, 0, 1], "f4"))
    flushed = each("mul.rn.ftz.f32 {d}, {a}, {b};", "f4", a, b)
    np.testing.assert_array_equal(flushed, np.zeros(4, "f4"))
    assert np.signbit(flushed).tolist() == [False, True, True, False]


def test_saturation():
    a = reals("f4")
    np.testing.assert_array_equal(each("cvt.sat.f32.f32 {d}, {a};", "f4", a), np.clip(np.nan_to_num(a, nan=0.0), 0, 1))


def test_signs():
    a = reals("f8")
    for name, function in (("neg", np.negative), ("abs", np.abs)):
        got = each(f"{name}.f64 {{d}}, {{a}};", "f8", a)
        np.testing.assert_array_equal(got.view("u8"), function(a).view("u8"))


APPROXIMATE: dict[str, tuple[Callable, np.ndarray]] = {
    "ex2.approx.ftz.f32": (np.exp2, np.linspace(-120, 120, 96)),
    "lg2.approx.f32": (np.log2, np.linspace(1.5, 1e6, 96)),
    "rsqrt.approx.ftz.f32": (lambda x: 1 / np.sqrt(x), np.linspace(1e-3, 1e6, 96)),
    "rcp.approx.ftz.f32": (lambda x: 1 / x, np.linspace(-7, 1e6, 96)),
    "sqrt.approx.ftz.f32": (np.sqrt, np.linspace(0, 1e6, 96)),
    "sqrt.rn.f32": (np.sqrt, np.linspace(0, 1e6, 96)),
    "sin.approx.f32": (np.sin, np.linspace(-3, 3, 96)),
    "cos.approx.f32": (np.cos, np.linspace(-1.5, 1.5, 96)),
    "tanh.approx.f32": (np.tanh, np.linspace(-3, 3, 96)),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximations(name):
    function, x = APPROXIMATE[name]
    x = x.astype("f4")
    np.testing.assert_allclose(each(f"{name} {{d}}, {{a}};", "f4", x), function(x.astype("f8")), rtol=2.5e-7)


def test_reciprocal_of_the_upper_half_of_a_double():
    x = finite("f8")
    got = each("rcp.approx.ftz.f64 {d}, {a};", "f8", x)
    np.testing.assert_allclose(got, 1 / x, rtol=3e-6)
    assert not (got.view("u8") & 0xFFFFFFFF).any()


def test_what_is_no_number_has_one_form():
    x = np.array([0x7F812345, 0xFFC00000, 0xFFFFFFFF], "u4").view("f4")
    assert set(each("add.rn.f32 {d}, {a}, {a};", "f4", x).view("u4").tolist()) == {0x7FFFFFFF}
    np.testing.assert_array_equal(each("mov.f32 {d}, {a};", "f4", x).view("u4"), x.view("u4"))


# Conversions.


def clipped(x: np.ndarray, how: Callable, dtype: str) -> list[int]:
    """To a whole number; no number is 0."""
    info = np.iinfo(dtype)
    whole = [0 if math.isnan(v) else v if math.isinf(v) else int(how(v)) for v in x.astype("f8").tolist()]
    return [int(min(max(v, info.min), info.max)) for v in whole]


@pytest.mark.parametrize(
    ("mode", "how"), [("rni", round), ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil)]
)
@pytest.mark.parametrize(("type", "dtype"), [("s32", "i4"), ("u32", "u4"), ("s64", "i8")])
def test_whole_numbers_of_reals(mode, how, type, dtype):
    x = np.concatenate([reals("f4"), np.array([0.5, -0.5, 2.5, -3.5, 2147483648.0, -3e9], "f4")])
    x = x[~np.isnan(x)] if dtype == "i8" else x  # one of 64 bits is not 0
    assert each(f"cvt.{mode}.{type}.f32 {{d}}, {{a}};", dtype, x).tolist() == clipped(x, how, dtype)


def test_reals_of_whole_numbers():
    x = wholes("i8")
    np.testing.assert_array_equal(each("cvt.rn.f32.s64 {d}, {a};", "f4", x), x.astype("f4"))
    np.testing.assert_array_equal(each("cvt.rn.f64.s64 {d}, {a};", "f8", x), x.astype("f8"))
    y = wholes("u4")
    toward_zero = [rounded(Fraction(int(v)), "rz", "f4") for v in y]
    np.testing.assert_array_equal(each("cvt.rz.f32.u32 {d}, {a};", "f4", y), np.array(toward_zero))


def test_whole_numbers_of_other_sizes():
    x = wholes("i4")
    np.testing.assert_array_equal(each("cvt.s64.s32 {d}, {a};", "i8", x), x.astype("i8"))
    np.testing.assert_array_equal(each("cvt.u64.u32 {d}, {a};", "u8", x), x.view("u4").astype("u8"))
    np.testing.assert_array_equal(each("cvt.s32.s8 {d}, {a};", "i4", x), x.astype("i1").astype("i4"))
    np.testing.assert_array_equal(each("cvt.u16.u32 {d}, {a};", "u2", x), x.astype("u2"))
    np.testing.assert_array_equal(each("cvt.sat.u8.s32 {d}, {a};", "u2", x), np.clip(x, 0, 255).astype("u2"))


def test_reals_of_other_sizes():
    x = reals("f8")
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(each("cvt.rn.f32.f64 {d}, {a};", "f4", x), x.astype("f4"))
    y = reals("f4")
    np.testing.assert_array_equal(each("cvt.f64.f32 {d}, {a};", "f8", y), y.astype("f8"))
    np.testing.assert_array_equal(each("cvt.rni.f32.f32 {d}, {a};", "f4", y), np.rint(y))


@pytest.mark.parametrize(("type", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_halves(type, dtype):
    x = torch.from_numpy(
        np.concatenate([reals("f4"), np.linspace(-6e-5, 6e-5, 96, dtype="f4"), [65519.9, 65520, 3.39e38]]).astype("f4")
    )
    wanted = x.to(dtype)
    got = torch.from_numpy(each(f"cvt.rn.{type}.f32 {{d}}, {{a}};", "i2", x.numpy()))
    torch.testing.assert_close(got.view(dtype), wanted, rtol=0, atol=0, equal_nan=True)
    back = torch.from_numpy(each(f"cvt.f32.{type} {{d}}, {{a}};", "f4", wanted.view(torch.int16).numpy()))
    torch.testing.assert_close(back, wanted.float(), rtol=0, atol=0, equal_nan=True)
    both = torch.from_numpy(each(f"cvt.rn.{type}x2.f32 {{d}}, {{a}}, {{b}};", "i4", x.numpy(), x.flip(0).numpy()))
    pair = both.view(torch.int16).view(dtype).reshape(-1, 2)  # the second operand is the lower half
    torch.testing.assert_close(pair, torch.stack([wanted.flip(0), wanted], 1), rtol=0, atol=0, equal_nan=True)


def test_tf32():
    x = reals("f4")
    got = each("cvt.rna.tf32.f32 {d}, {a};", "u4", x)
    assert not (got[np.isfinite(x)] & 0x1FFF).any()
    kept = (np.abs(x) > 1e-30) & (np.abs(x) < 1e30)
    np.testing.assert_allclose(got.view("f4")[kept], x[kept], rtol=2.0**-11)
    tie = np.array([0x3F801000, 0xBF801000], "u4")
    assert each("cvt.rna.tf32.f32 {d}, {a};", "u4", tie.view("f4")).tolist() == [0x3F802000, 0xBF802000]


# Comparisons and choices.

ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@pytest.mark.parametrize("name", [*ORDERED, *(f"{name}u" for name in ORDERED), "num", "nan"])
def test_comparisons_of_reals(name):
    a, b = np.array(list(itertools.product(SPECIAL, SPECIAL)), "f4").T.copy()
    none = np.isnan(a) | np.isnan(b)
    wanted = {"num": ~none, "nan": none}.get(name)
    if wanted is None:
        wanted = ORDERED[name[:2]](a, b) | none if name.endswith("u") else ORDERED[name](a, b) & ~none
    got = each(f"setp.{name}.f32 %p, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, %p;", "u4", a, b)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("type", ["s32", "u32"])
@pytest.mark.parametrize("name", ORDERED)
def test_comparisons_of_whole_numbers(name, type):
    dtype = "i4" if type == "s32" else "u4"
    a, b = wholes(dtype), wholes(dtype)
    b[::5] = a[::5]
    got = each(
        f"setp.{name}.{type} %p|%q, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, %p; @%q add.u32 {{d}}, {{d}}, 2;", "u4", a, b
    )
    wanted = ORDERED[name](a, b)
    np.testing.assert_array_equal(got, np.where(wanted, 1, 2))


@pytest.mark.parametrize(
    ("name", "function"), [("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)]
)
def test_comparisons_with_a_predicate(name, function):
    a, b = wholes("i4"), wholes("i4")
    got = each(f"setp.lt.s32 %q, {{a}}, 0; setp.gt.{name}.s32 %p, {{b}}, 5, %q; selp.u32 {{d}}, 1, 0, %p;", "u4", a, b)
    np.testing.assert_array_equal(got, function(b > 5, a < 0))
    got = each(
        f"setp.lt.s32 %p, {{a}}, 0; setp.gt.s32 %q, {{b}}, 5; {name}.pred %p, %p, %q; selp.u32 {{d}}, 1, 0, %p;",
        "u4",
        a,
        b,
    )
    np.testing.assert_array_equal(got, function(b > 5, a < 0))


def test_choices():
    a, b, c = wholes("u4"), wholes("u4"), wholes("i4")
    np.testing.assert_array_equal(each("slct.b32.s32 {d}, {a}, {b}, {c};", "u4", a, b, c), np.where(c >= 0, a, b))
    wanted = np.where(a < b, 0xFFFFFFFF, 0)
    np.testing.assert_array_equal(each("set.lt.u32.u32 {d}, {a}, {b};", "u4", a, b), wanted)
    np.testing.assert_array_equal(each("set.lt.f32.u32 {d}, {a}, {b};", "f4", a, b), (a < b).astype("f4"))
    np.testing.assert_array_equal(
        each("setp.lt.u32 %p, {a}, {b}; not.pred %q, %p; selp.b32 {d}, {a}, {b}, %q;", "u4", a, b), np.maximum(a, b)
    )


def test_registers_in_parts():
    x = wholes("u8")
    swapped = each("mov.b64 {{%r1, %r2}}, {a}; mov.b64 {d}, {{%r2, %r1}};", "u8", x)
    np.testing.assert_array_equal(swapped, x << 32 | x >> 32)
    y = wholes("u4")
    np.testing.assert_array_equal(each("mov.b32 {{_, %h1}}, {a}; mov.b32 {d}, {{%h1, 0}};", "u4", y), y >> 16)


def test_what_is_unknown_is_named():
    for instruction in (
        "add.rn.f32.nonsense %f1, %f1, %f1;",
        "dance.s32 %r1, %r2;",
        "add.s32 %r1, %r2, %nobody;",
        "bra nowhere;",
    ):
        with pytest.raises(RuntimeError, match=r"unknown|missing"):
            launch(entry(instruction, 1), np.zeros(1))
