"""Small entries of PTX around a few instructions, one thread an element."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
from ptx.interpreter import Module, remember

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
REGISTERS = """
  .reg .pred %p, %q;
  .reg .b16 %h<16>;
  .reg .b32 %r<64>;
  .reg .f32 %f<16>;
  .reg .b64 %l<16>;
  .reg .f64 %d<16>;
"""
INDEX = """
  mov.u32 %r60, %tid.x;
  mov.u32 %r61, %ctaid.x;
  mov.u32 %r62, %ntid.x;
  mad.lo.u32 %r63, %r61, %r62, %r60;
"""
# The registers of a type, by the size of an element.
PREFIXES = {"f4": "%f", "f8": "%d", 2: "%h", 4: "%r", 8: "%l"}


def entry(body: str, pointers: int, shared: int = 0, more: str = "") -> str:
    """An entry "snippet" of so many pointers, in %l0, %l1, ...; the thread of the grid is in %r63."""
    parameters = ", ".join(f".param .u64 at{k}" for k in range(pointers))
    loads = "\n".join(f"  ld.param.u64 %l{k}, [at{k}];" for k in range(pointers))
    block = f".shared .align 16 .b8 block[{shared}];\n" if shared else ""
    return f"{HEADER}{more}{block}.visible .entry snippet({parameters}) {{{REGISTERS}{loads}{INDEX}{body}\n  ret;\n}}"


def launch(text: str, *arrays: np.ndarray, threads: int = 32, blocks: int = 1, dynamic_shared: int = 0) -> None:
    """Run the entry "snippet" on arrays, which it may change."""
    module = Module(text)
    addresses = struct.pack(f"{len(arrays)}Q", *(x.ctypes.data for x in arrays))
    with contextlib.ExitStack() as stack:
        stack.callback(module.close)
        for x in arrays:
            stack.enter_context(remember(x.ctypes.data, x.nbytes))
        module.launch("snippet", (blocks, 1, 1), (threads, 1, 1), addresses, dynamic_shared)


def register(dtype: np.dtype, k: int) -> str:
    prefix = PREFIXES.get(dtype.kind + str(dtype.itemsize)) or PREFIXES[dtype.itemsize]
    return f"{prefix}{k}"


def each(instruction: str, result: str, *operands: np.ndarray) -> np.ndarray:
    """What an instruction on {d}, {a}, {b}, {c} gives of each element of the operands, as the dtype `result`."""
    count = -(-len(operands[0]) // 32) * 32
    padded = [np.ascontiguousarray(np.resize(x, count)) for x in operands]
    out = np.zeros(count, result)
    names = {name: register(x.dtype, 8 + k) for k, (name, x) in enumerate(zip("abc", padded, strict=False))}
    body = ""
    for k, (name, x) in enumerate(zip("abc", padded, strict=False), 1):
        size = x.dtype.itemsize
        body += f"\n  mul.wide.u32 %l7, %r63, {size};\n  add.s64 %l7, %l7, %l{k};"
        body += f"\n  ld.global.b{size * 8} {names[name]}, [%l7];"
    d = register(out.dtype, 15)
    body += "\n  " + instruction.format(d=d, **names)
    body += f"\n  mul.wide.u32 %l7, %r63, {out.itemsize};\n  add.s64 %l7, %l7, %l0;"
    body += f"\n  st.global.b{out.itemsize * 8} [%l7], {d};"
    launch(entry(body, 1 + len(padded)), out, *padded, blocks=count // 32)
    return out[: len(operands[0])]
