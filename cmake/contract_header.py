"""Prints csrc's view of dmlkernels/_contract.py: for each operator a struct of its arguments, which it takes off the
dispatcher's stack and checks in the words of dmlkernels/_verify.py."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dmlkernels"))
from _contract import (  # type: ignore[import-not-found]
    MAX_CENTERS_PER_CLASS,
    OPERATORS,
    TILE,
    Argument,
    Dims,
    Expression,
    Operator,
    subject,
)

TYPES = {"Tensor": "Tensor", "int": "int64_t", "float": "double", "bool": "bool", "str": "std::string"}
DTYPES = {"float64": "Double", "float32": "Float", "bfloat16": "BFloat16", "float16": "Half", "int64": "Long"}
DTYPES |= {"uint8": "Byte", "bool": "Bool"}
READ_AS = {"int64": "int64_t", "float64": "double"}


def code(expression: Expression) -> str:
    text = re.sub(r"ceil\((\w+)/(\d+)\)", r"(\1 + \2 - 1) / \2", expression.text)
    return text.replace("inf", "std::numeric_limits<double>::infinity()")


class Checks:
    """The statements that check an operator's arguments; `known` are the sizes that earlier ones have."""

    def __init__(self, operator: Operator):
        # A number that is a size goes by its name too.
        self.operator, self.by_name = operator, {n: a for a in operator.arguments for n in (a.name, a.size) if n}
        self.known = {a.size or a.name for a in operator.arguments if a.type in ("int", "float")}
        self.first = next(a.name for a in operator.in_order if a.type == "Tensor")

    def statements(self) -> Iterator[str]:
        sizes = {name: None for a in self.operator.in_order for name in self.size_names(a)}
        yield f'const Arguments c("{subject(self.operator.name)}", "{self.first}", {self.first});'
        if sizes:
            yield f"int64_t {', '.join(f'{name} = 0' for name in sizes)};"
        for a in self.operator.in_order:
            if a.partners:
                wanted = " && ".join(self.present(name) for name in a.partners)
                yield f'c.given("{a.name}", {a.name}, {wanted}, "{" and ".join(a.partners)}");'
            for other, value in a.excluded:
                yield f'c.absent("{a.name}", {a.name}, {other} == "{value}", "{other} = {value}");'
            if a.type == "Tensor":
                yield from self.tensor(a)
            elif a.choices:
                yield f'c.choice("{a.name}", {a.name}, {{{", ".join(f"{chr(34)}{x}{chr(34)}" for x in a.choices)}}});'
            elif a.interval:
                yield f'c.interval("{a.name}", {a.name}, {self.interval(a)});'
            elif a.type == "bool" and a.gradient_of:
                yield f'c.only_with("{a.name}", {a.name}, {self.present(a.gradient_of)}, "{a.gradient_of}");'

    def numbers(self) -> Iterator[str]:
        """Of what the tensors hold."""
        for a in self.operator.arguments:
            if a.type != "Tensor" or a.interval is None:
                continue
            x = f"*{a.name}" if a.optional else a.name
            call = f'c.numbers<{READ_AS[a.dtype]}>("{a.name}", {x}, {self.interval(a)});'
            named = [self.by_name[n] for n in (a.name, *a.interval.names) if n in self.by_name]
            needed = [argument.name for argument in named if argument.optional]
            yield f"if ({' && '.join(needed)}) {call}" if needed else call

    def tensor(self, a: Argument) -> Iterator[str]:
        x = f"*{a.name}" if a.optional else a.name
        assert a.shape is not None
        if a.shape.condition:
            name, _, value = a.shape.condition.partition(" = ")
            met = f'{name} == "{value}"' if value else self.present(name)
            shape, otherwise = self.shape(a, x, a.shape.dims), self.shape(a, x, a.shape.otherwise)
            lines = [f"if ({met}) {{ {shape} }} else {{ {otherwise} }}"]
        else:
            lines = [self.shape(a, x, a.shape.dims)]
        if a.like:
            kind = "like" if a.dtype.startswith("like") else "of_sums"
            lines.append(f'c.dtype_{kind}("{a.name}", {x}, "{a.like}", {a.like});')
        else:
            types = ", ".join(f"ScalarType::{DTYPES[name]}" for name in a.dtype.split("|"))
            lines.append(f'c.dtype("{a.name}", {x}, {{{types}}});')
        if a.name != self.first:
            lines.append(f'c.device("{a.name}", {x});')
        if not a.optional:
            yield from lines
            return
        instead = f" else {{ {a.without[0]} = {a.without[1]}; }}" if a.without else ""
        yield f"if ({a.name}) {{ {' '.join(lines)} }}{instead}"

    def shape(self, a: Argument, x: str, dims: Dims) -> str:
        before = set(self.known)
        sizes = ", ".join(self.size(size, before) for size in dims.sizes)
        known = self.known_values([n for size in dims.sizes for n in size.names if n in before])
        return f'c.shape("{a.name}", {x}, "{dims.text}", {{{sizes}}}, {known});'

    def size(self, size: Expression, before: set[str]) -> str:
        unknown = [name for name in size.names if name not in self.known]
        self.known.update(unknown)
        if unknown:
            return f"Size::learn({', '.join([*unknown, *(n for n in size.names if n in before)])})"
        return code(size) if before.issuperset(size.names) else f"Size::again({size.text})"

    def interval(self, a: Argument) -> str:
        assert a.interval is not None
        low, high = (self.end(end) for end in (a.interval.low, a.interval.high))
        names = [name for name in a.interval.names if name != "inf"]
        ends = f"static_cast<double>({low}), static_cast<double>({high})"
        return f'{{"{a.interval.text}", {ends}}}, {self.known_values(names)}'

    def end(self, end: Expression) -> str:
        if (argument := self.by_name.get(end.text)) is None:
            return code(end)
        return f"*{argument.name}" if argument.optional else argument.name

    def known_values(self, names: Sequence[str]) -> str:
        pairs = (f'{{"{name}", {self.end(Expression.of(name))}}}' for name in dict.fromkeys(names))
        return f"{{{', '.join(pairs)}}}"

    def present(self, name: str) -> str:
        return f"{name}.has_value()" if self.by_name[name].optional else name

    def size_names(self, a: Argument) -> list[str]:
        if a.shape is None:
            return []
        return [name for size in a.shape.dims.sizes for name in size.names if name not in self.by_name]


def struct(operator: Operator) -> str:
    checks = Checks(operator)
    member = {a.name: f"std::optional<{TYPES[a.type]}>" if a.optional else TYPES[a.type] for a in operator.arguments}
    taken = ",\n            ".join(f"torch::stable::detail::to<{t}>(stack[{k}])" for k, t in enumerate(member.values()))
    lines = [
        f"struct {operator.name} {{",
        f'  static constexpr const char* subject = "{subject(operator.name)}";',
        *(f"  {type_} {name};" for name, type_ in member.items()),
        f"  static {operator.name} take(StableIValue* stack) {{",
        f"    return {{{taken}}};",
        "  }",
        "  template <Read read>",
        "  void verify() const {",
        *(f"    {line}" for line in checks.statements()),
    ]
    if numbers := [f"      {line}" for line in checks.numbers()]:
        lines += ["    if constexpr (read == Read::numbers) {", *numbers, "    }"]
    return "\n".join([*lines, "  }", "};"])


def header() -> str:
    lines = [
        "#pragma once",
        "// Made from dmlkernels/_contract.py by cmake/contract_header.py.",
        "#include <limits>",
        '#include "common/contract.h"',
        '#include "common/soft_triple.h"',
        '#include "common/tile_schedule.h"',
        f"static_assert(dml::kTile == {TILE} && dml::kMaxCentersPerClass == {MAX_CENTERS_PER_CLASS});",
        "namespace dml::operators {",
        *map(struct, OPERATORS.values()),
        "}  // namespace dml::operators",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(header())
