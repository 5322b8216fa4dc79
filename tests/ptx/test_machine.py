"""Memory, warps, barriers, copies and tensor cores of the interpreter: what they give, and that each check fires."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from cuda_host.backend import cannot_build
from ptx.interpreter import set_seed, tensor_cores
from support.ptx_snippets import entry, launch

pytestmark = pytest.mark.skipif(cannot_build() is not None, reason=str(cannot_build()))

STORE = "mul.wide.u32 %l7, %r63, 4; add.s64 %l7, %l7, %l0; st.global.b32 [%l7], %r1;"
LANES = np.arange(32, dtype="u4")


def numbers(body: str, threads: int = 32, blocks: int = 1, shared: int = 0, dynamic_shared: int = 0) -> np.ndarray:
    """What each thread leaves in %r1."""
    out = np.zeros(threads * blocks, "u4")
    launch(entry(body + STORE, 1, shared), out, threads=threads, blocks=blocks, dynamic_shared=dynamic_shared)
    return out


def refused(words: str, body: str, threads: int = 32, shared: int = 0, dynamic_shared: int = 0) -> None:
    with pytest.raises(RuntimeError, match=re.escape(words)):
        numbers(body, threads, shared=shared, dynamic_shared=dynamic_shared)


# Memory.


def test_vectors():
    x, out = np.arange(16, dtype="u4"), np.zeros(16, "u4")
    body = """
      setp.ne.u32 %p, %r63, 0; @%p bra done;
      ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%l0+16]; st.global.v4.b32 [%l1], {%r4, %r3, %r2, %r1};
      ld.global.v2.u16 {%h1, %h2}, [%l0+4]; st.global.v2.u16 [%l1+16], {%h2, %h1};
      ld.global.s8 %r5, [%l0+60]; sub.s32 %r5, %r5, 20; st.global.u8 [%l1+20], %r5; ld.global.s8 %r6, [%l1+20];
      st.global.u32 [%l1+24], %r6;
      done:"""
    launch(entry(body, 2), x, out)
    assert out[:7].tolist() == [7, 6, 5, 4, 1 << 16, 251, 2**32 - 5]


def test_generic_addresses():
    body = """
      .local .align 8 .b8 own[8];
      mov.u64 %l1, own; cvta.local.u64 %l2, %l1; st.u32 [%l2+4], %r63;
      mov.u64 %l3, block; cvta.shared.u64 %l4, %l3; mul.wide.u32 %l5, %r63, 4; add.s64 %l4, %l4, %l5;
      st.u32 [%l4], %r63; cvta.to.shared.u64 %l6, %l4; ld.shared.u32 %r2, [%l6]; ld.local.u32 %r3, [%l1+4];
      add.u32 %r1, %r2, %r3;"""
    np.testing.assert_array_equal(numbers(body, shared=128), 2 * LANES)


@pytest.mark.parametrize(("body", "words"), [
    ("ld.global.u32 %r1, [%l0+2];", "the address is not a multiple of 4"),
    ("ld.global.v2.u32 {%r1, %r2}, [%l0+4];", "the address is not a multiple of 8"),
    ("ld.global.u32 %r1, [%l0+128];", "outside of every allocation: byte 128 of one of 128 bytes"),
    ("st.global.u8 [%l0+-1], %r1;", "outside of every allocation"),
    ("atom.global.add.u32 %r1, [%l0+128], 1;", "outside of every allocation: byte 128 of one of 128 bytes"),
    ("mov.u64 %l1, 0; ld.u32 %r1, [%l1];", "outside of every allocation"),
    ("ld.shared.u32 %r1, [block+64];", "byte 64 is beyond the 64 bytes of shared memory"),
    ("st.shared.v4.u32 [block+52], {%r1, %r1, %r1, %r1};", "the address is not a multiple of 16"),
    ("mov.u32 %r2, 0; st.shared.u32 [%r2], %r1;", "byte -1024 is beyond the 0 bytes of shared memory"),
    (".local .align 4 .b8 own[8]; mov.u64 %l1, own; ld.local.u32 %r1, [%l1+8];", "byte 8 is beyond the 8 bytes of lo"),
    ("ld.param.u64 %l1, [at0+8];", "byte 8 is beyond the 8 bytes of parameters"),
    ("cp.async.cg.shared.global [block+56], [%l0], 16;", "the address is not a multiple of 16"),
    ("cp.async.cg.shared.global [block+64], [%l0], 16;", "byte 64 is beyond the 64 bytes of shared memory"),
    ("cp.async.cg.shared.global [block], [%l0+4], 16;", "the address is not a multiple of 16"),
    ("cp.async.cg.shared.global [block], [%l0+128], 16;", "outside of every allocation"),
    ("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [block+8];", "the address is not a multiple of 16"),
])  # fmt: skip
def test_an_address_is_checked(body, words):
    refused(words, body, shared=64)


def test_shared_memory_is_poisoned():
    assert set(numbers("ld.shared.u32 %r1, [block+12];", shared=64).tolist()) == {0xFFFFFFFF}


def test_shared_memory_of_a_launch():
    """It lies behind what the entry has of its own."""
    body = "mov.u32 %r2, block; mov.u32 %r3, more; sub.u32 %r1, %r3, %r2; st.shared.u32 [more+60], %r1;"
    text = entry(body + STORE, 1, 20, ".extern .shared .align 16 .b8 more[];\n")
    out = np.zeros(32, "u4")
    launch(text, out, dynamic_shared=64)
    assert set(out.tolist()) == {32}
    with pytest.raises(RuntimeError, match="byte 92 is beyond the 92 bytes"):
        launch(text, out, dynamic_shared=60)


@pytest.mark.parametrize(("what", "start", "wanted"), [
    ("add.u32", 5, 5 + 64), ("min.s32", 5, 0), ("max.u32", 5, 63), ("or.b32", 64, 127), ("and.b32", 64, 0),
    ("xor.b32", 0, 0),
])  # fmt: skip
def test_atomics(what, start, wanted):
    operand = "1" if what.startswith("add") else "%r63"
    total = np.array([start], "u4")
    launch(entry(f"atom.global.{what} %r1, [%l0], {operand};", 1), total, threads=64)
    assert total[0] == wanted
    total[0] = start
    launch(entry(f"red.relaxed.gpu.global.{what} [%l0], {operand};", 1), total, threads=64)
    assert total[0] == wanted


def test_atomics_that_give_the_old_number():
    assert sorted(numbers("st.shared.u32 [block], 0; atom.shared.add.u32 %r1, [block], 1;", shared=4)) == [*range(32)]
    tries = "st.shared.u32 [block], 9; bar.warp.sync -1; atom.shared.cas.b32 %r1, [block], 9, %r63;"
    old = numbers(tries, shared=4)
    (first,) = np.flatnonzero(old == 9)
    assert set(old[old != 9].tolist()) == {int(first)}
    total = np.zeros(2, "f8")
    launch(entry("atom.global.add.f64 %d1, [%l0+8], 0d3FE0000000000000;", 1), total, threads=64, blocks=2)
    assert total.tolist() == [0, 64]


# Lanes of a warp.


def test_branches():
    body = """
      mov.u32 %r1, 0; mov.u32 %r2, 0;
      again: add.u32 %r1, %r1, 3; add.u32 %r2, %r2, 1; setp.lt.u32 %p, %r2, %r63; @%p bra again;
      setp.gt.u32 %p, %r63, 40; @!%p bra low; add.u32 %r1, %r1, 1000; bra end;
      low: add.u32 %r1, %r1, 5;
      end:"""
    thread = np.arange(64)
    np.testing.assert_array_equal(numbers(body, 64), 3 * np.maximum(thread, 1) + np.where(thread > 40, 1000, 5))


@pytest.mark.parametrize("width", [8, 16, 32])
def test_shuffles(width):
    base, place = LANES // width * width, LANES % width
    wanted = {
        "up": (lambda by: np.where(place >= by, LANES - by, LANES), 0),
        "down": (lambda by: np.where(place + by < width, LANES + by, LANES), 31),
        "bfly": (lambda by: np.where((place ^ by) < width, base + (place ^ by), LANES), 31),
        "idx": (lambda by: base + by % width, 31),
    }
    for direction, (source, clamp) in wanted.items():
        for by in (1, 3, 7, width // 2):
            control = (32 - width) << 8 | clamp
            body = f"mul.lo.u32 %r2, %r63, 10; shfl.sync.{direction}.b32 %r1|%p, %r2, {by}, {control}, -1;"
            np.testing.assert_array_equal(numbers(body), 10 * source(by), err_msg=f"{direction} {by}")


def test_votes():
    odd = "and.b32 %r2, %r63, 1; setp.eq.u32 %p, %r2, 1;"
    assert set(numbers(odd + "vote.sync.ballot.b32 %r1, %p, -1;").tolist()) == {0xAAAAAAAA}
    for name, holds in (("all", False), ("any", True), ("uni", False)):
        got = numbers(odd + f"vote.sync.{name}.pred %q, %p, -1; selp.u32 %r1, 1, 0, %q;")
        assert set(got.tolist()) == {int(holds)}
    got = numbers(odd + "@%p bra on; bra out; on: vote.sync.all.pred %q, %p, 0xAAAAAAAA; selp.u32 %r1, 7, 0, %q; out:")
    np.testing.assert_array_equal(got, 7 * (LANES % 2))


def test_reductions():
    for what, wanted in (("add.s32", 496), ("min.u32", 0), ("max.s32", 31), ("or.b32", 31), ("xor.b32", 0)):
        assert set(numbers(f"redux.sync.{what} %r1, %r63, -1;").tolist()) == {wanted}


def test_lanes_go_on_together_after_a_branch():
    body = "setp.lt.u32 %p, %r63, 9; @%p bra on; mov.u32 %r2, 5; bra join; on: mov.u32 %r2, 6; join: "
    got = numbers(body + "shfl.sync.bfly.b32 %r1, %r2, 31, 31, -1;")
    np.testing.assert_array_equal(got, np.where(31 - LANES < 9, 6, 5))


@pytest.mark.parametrize(("body", "words"), [
    ("setp.lt.u32 %p, %r63, 16; @%p shfl.sync.idx.b32 %r1, %r63, 20, 31, 0xffff;", "a lane outside its mask"),
    ("shfl.sync.bfly.b32 %r1, %r63, 1, 31, 0x7fffffff;", "a lane is not in the mask of its own warp operation"),
    ("setp.lt.u32 %p, %r63, 16; @%p ret; vote.sync.any.pred %q, %p, -1;", "lanes are waited for that have returned"),
    ("setp.lt.u32 %p, %r63, 9; @%p bra on; bar.warp.sync -1; bra out; on: bar.warp.sync -1; out:", "here for others"),
    ("setp.lt.u32 %p, %r63, 16; @%p ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [block];", "wait here for others"),
    ("trap;", "the kernel gives up"),
])  # fmt: skip
def test_lanes_that_do_not_keep_to_the_rules(body, words):
    refused(words, body + "add.u32 %r1, %r1, 1;", shared=128)


def test_lanes_need_not_keep_step():
    """Without a barrier of their warp some lanes read what others have not yet written, under some seed."""
    body = "shl.b32 %r2, %r63, 2; mov.u32 %r3, block; add.u32 %r2, %r2, %r3; xor.b32 %r4, %r2, 4;"
    body += "st.shared.u32 [%r2], %r63;"
    found = set()
    for seed in range(16):
        set_seed(seed)
        np.testing.assert_array_equal(
            numbers(f"{body} bar.warp.sync -1; ld.shared.u32 %r1, [%r4];", shared=128), LANES ^ 1
        )
        found.add(tuple(numbers(f"{body} ld.shared.u32 %r1, [%r4];", shared=128)))
    set_seed(0)
    assert len(found) > 1


# Barriers.

REVERSE = """
  mov.u32 %r3, block; shl.b32 %r2, %r63, 2; add.u32 %r2, %r2, %r3; st.shared.u32 [%r2], %r63;
  BARRIER
  mov.u32 %r4, 127; sub.u32 %r4, %r4, %r63; shl.b32 %r4, %r4, 2; add.u32 %r4, %r4, %r3; ld.shared.u32 %r1, [%r4];"""


def test_a_barrier_orders_the_warps_of_a_block():
    with_barrier, without = set(), set()
    for seed in range(8):
        set_seed(seed)
        with_barrier.add(tuple(numbers(REVERSE.replace("BARRIER", "bar.sync 0;"), 128, shared=512)))
        without.add(tuple(numbers(REVERSE.replace("BARRIER", ""), 128, shared=512)))
    set_seed(0)
    assert with_barrier == {tuple(range(127, -1, -1))}
    assert len(without) > 1


def test_barriers_that_reduce():
    odd = "setp.lt.u32 %p, %r63, 50;"
    assert set(numbers(odd + "bar.red.popc.u32 %r1, 0, %p;", 96).tolist()) == {50}
    for what, holds in (("and", 0), ("or", 1)):
        got = numbers(odd + f"bar.red.{what}.pred %q, 0, %p; selp.u32 %r1, 1, 0, %q;", 96)
        assert set(got.tolist()) == {holds}


@pytest.mark.parametrize(("body", "words"), [
    ("setp.lt.u32 %p, %r63, 16; @%p bra on; bar.sync 0; on:", "wait here for others"),
    ("setp.lt.u32 %p, %r63, 32; @%p bra on; bar.sync 0; on:", "divergent barrier: 32 threads wait at line"),
    ("setp.lt.u32 %p, %r63, 32; @%p bra on; bar.sync 0; bra out; on: bar.sync 0; out:", "other warps wait"),
    ("setp.lt.u32 %p, %r63, 20; @%p ret; bar.sync 0;", "lanes are waited for that have returned"),
    ("bar.sync 0, 96;", "a barrier for 96 threads"),
    ("bar.sync 0, 48;", "a barrier for 48 threads"),
    ("bar.sync 0, 32;", ""),
])  # fmt: skip
def test_a_barrier_that_some_do_not_reach(body, words):
    body += " mov.u32 %r1, 1;"
    if words:
        refused(words, body, threads=64)
    else:
        numbers(body, threads=64)


# Copies that go on while the threads compute.

COPY = """
  mul.wide.u32 %l2, %r63, 16; add.s64 %l3, %l1, %l2;
  shl.b32 %r2, %r63, 4; mov.u32 %r3, block; add.u32 %r2, %r2, %r3;"""
READ = " bar.sync 0; shl.b32 %r4, %r63, 2; add.u32 %r4, %r4, %r3; ld.shared.u32 %r1, [%r4];"


def copied(body: str) -> list[int]:
    x, out = np.arange(256, dtype="u4"), np.zeros(64, "u4")
    launch(entry(COPY + body + READ + STORE, 2, 1024), out, x, threads=64)
    return out.tolist()


def test_copies():
    start, nan = "cp.async.cg.shared.global [%r2], [%l3], 16;", 0xFFFFFFFF
    assert copied(start + "cp.async.commit_group; cp.async.wait_group 0;") == [*range(64)]
    assert copied(start + "cp.async.wait_all;") == [*range(64)]
    assert copied(start + "cp.async.commit_group; cp.async.wait_group 1;") == [nan] * 64
    assert copied(start + "cp.async.commit_group;") == [nan] * 64
    assert copied(start + "cp.async.wait_group 0;") == [nan] * 64
    again = "cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1;"
    assert copied(start + again) == [*range(64)]
    part = "cp.async.ca.shared.global [%r2], [%l3], 16, 4; cp.async.wait_all;"
    assert copied(part) == [k if k % 4 == 0 else 0 for k in range(64)]


# Tensor cores. Lane 4g + t, as the manual of PTX draws the fragments.


def fragments(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The words of each lane of a (16, K) and b (8, K): (32, registers)."""
    per_word = 4 // a.itemsize
    words = [np.ascontiguousarray(x).view("u4").reshape(len(x), -1) for x in (a, b)]
    g, t = LANES // 4, LANES % 4
    halves = a.shape[1] // per_word // 4
    of_a = [words[0][g + 8 * low, t + 4 * half] for half in range(halves) for low in (0, 1)]
    return np.stack(of_a, 1), np.stack([words[1][g, t + 4 * half] for half in range(halves)], 1)


def multiplied(shape: str, kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    of_a, of_b = fragments(a, b)
    g, t = LANES // 4, LANES % 4
    places = [(g + 8 * (i // 2), 2 * t + i % 2) for i in range(4)]
    words = np.concatenate([of_a, of_b, np.stack([c[p].view("u4") for p in places], 1)], 1).astype("u4")
    count, inputs = words.shape[1], [f"%r{k}" for k in range(words.shape[1])]
    out = np.zeros((32, 4), "u4")
    load = f"mul.wide.u32 %l2, %r63, {4 * count}; add.s64 %l2, %l1, %l2;"
    load += "".join(f"ld.global.u32 {name}, [%l2+{4 * k}];" for k, name in enumerate(inputs))
    lists = [inputs[: of_a.shape[1]], inputs[of_a.shape[1] : -4], inputs[-4:]]
    a_list, b_list, c_list = ("{" + ", ".join(names) + "}" for names in lists)
    multiply = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
    multiply += f"{{%r50, %r51, %r52, %r53}}, {a_list}, {b_list}, {c_list};"
    store = "mul.wide.u32 %l2, %r63, 16; add.s64 %l2, %l0, %l2; st.global.v4.b32 [%l2], {%r50, %r51, %r52, %r53};"
    launch(entry(load + multiply + store, 2), out, np.ascontiguousarray(words))
    result = np.zeros((16, 8), "f4")
    for i, place in enumerate(places):
        result[place] = out.view("f4")[:, i]
    return result


def operand(x: np.ndarray, kind: str) -> np.ndarray:
    """As registers hold it."""
    if kind == "f16":
        return x.astype("f2")
    return x.astype("f4") if kind == "tf32" else torch.from_numpy(x).bfloat16().view(torch.int16).numpy()


SHAPES = [
    ("m16n8k16", "bf16"),
    ("m16n8k16", "f16"),
    ("m16n8k8", "bf16"),
    ("m16n8k8", "f16"),
    ("m16n8k8", "tf32"),
    ("m16n8k4", "tf32"),
]


@pytest.mark.parametrize(("shape", "kind"), SHAPES)
def test_products(shape, kind):
    k, random = int(shape[6:]), np.random.default_rng(0)
    a, b, c = (random.integers(-9, 10, size).astype("f8") / 4 for size in ((16, k), (8, k), (16, 8)))
    got = multiplied(shape, kind, operand(a, kind), operand(b, kind), c.astype("f4"))
    np.testing.assert_array_equal(got, a @ b.T + c)


def test_products_of_doubles():
    random = np.random.default_rng(0)
    a, b, c = (random.standard_normal(size) for size in ((8, 4), (8, 4), (8, 8)))
    g, t = LANES // 4, LANES % 4
    words = np.stack([a[g, t], b[g, t], c[g, 2 * t], c[g, 2 * t + 1]], 1)
    out = np.zeros((32, 2))
    body = "mul.wide.u32 %l2, %r63, 32; add.s64 %l2, %l1, %l2;"
    body += "".join(f"ld.global.f64 %d{k}, [%l2+{8 * k}];" for k in range(4))
    body += "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d4, %d5}, {%d0}, {%d1}, {%d2, %d3};"
    body += "mul.wide.u32 %l2, %r63, 16; add.s64 %l2, %l0, %l2; st.global.v2.f64 [%l2], {%d4, %d5};"
    launch(entry(body, 2), out, words)
    wanted = a @ b.T + c
    np.testing.assert_allclose(out, np.stack([wanted[g, 2 * t], wanted[g, 2 * t + 1]], 1), rtol=1e-14)


def test_sums_are_cut_off():
    """One instruction keeps two bits beyond those of float32, and none that is nearer to the next number."""
    a, b, c = np.zeros((16, 16)), np.ones((8, 16)), np.ones((16, 8), "f4")
    a[0, :2], a[1, :2], a[2, :8], a[3, 0] = 2.0**-24, 2.0**-25, 2.0**-26, -(2.0**-26)
    ulp = 2.0**-23
    got = multiplied("m16n8k16", "bf16", operand(a, "bf16"), operand(b, "bf16"), c)[:4, 0].astype("f8") - 1
    assert got.tolist() == [ulp, 0, 0, 0]
    with tensor_cores(extra_bits=0, together=4):
        got = multiplied("m16n8k16", "bf16", operand(a, "bf16"), operand(b, "bf16"), c)[:4, 0].astype("f8") - 1
    assert got.tolist() == [0, 0, 0, 0]


def test_products_ignore_what_tf32_has_not():
    a, b, c = np.zeros((16, 8), "f4"), np.zeros((8, 8), "f4"), np.zeros((16, 8), "f4")
    a[:, 0], b[:, 0] = 1 + 2.0**-11, 1
    assert (multiplied("m16n8k8", "tf32", a, b, c) == 1).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices(transposed):
    x, out = np.arange(256, dtype="u2"), np.zeros((32, 4), "u4")
    body = (
        COPY.replace("%r63, 16", "%r63, 16")
        + "cp.async.cg.shared.global [%r2], [%l3], 16; cp.async.wait_all; bar.sync 0;"
    )
    body += f"ldmatrix.sync.aligned.m8n8.x4{'.trans' if transposed else ''}.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r2];"
    body += "add.s64 %l2, %l0, %l2; st.global.v4.b32 [%l2], {%r4, %r5, %r6, %r7};"
    launch(entry(body, 2, 512), out, x)
    matrices = x.reshape(4, 8, 8)
    wanted = (matrices.transpose(0, 2, 1) if transposed else matrices).copy().view("u4").reshape(4, 32)
    np.testing.assert_array_equal(out, wanted.T)


# Launches.


@pytest.mark.parametrize(("head", "threads", "dynamic_shared", "words"), [
    (".maxntid 64, 1, 1", 96, 0, "a block of 96 threads is too large"),
    (".reqntid 64", 32, 0, "the kernel wants another number of threads than 32"),
    ("", 2048, 0, "a block of 2048 threads is too large"),
    ("", 32, 200_000, "a block asks for too much shared memory"),
])  # fmt: skip
def test_a_launch_is_checked(head, threads, dynamic_shared, words):
    text = entry("mov.u32 %r1, 1;", 1).replace(") {", f") {head} {{", 1)
    with pytest.raises(RuntimeError, match=words):
        launch(text, np.zeros(1), threads=threads, dynamic_shared=dynamic_shared)
