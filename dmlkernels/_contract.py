"""What every operator takes and gives: schemas, fakes, autograd and all checks of arguments come from this text.

A line for each argument, and after `->` for each result:

    TYPE NAME [SHAPE] [DTYPE] [; CLAUSE ...]

SHAPE   (M, D): a size that is named first is learnt, later ones must agree; `SHAPE if CONDITION else SHAPE`, where a
        condition is an argument that is given or true, or `argument = value`.
DTYPE   float64, int64, ... or several with `|`; `floating`; `like x`, that of x; `compute x`, in which x is summed:
        float64 of float64, else float32.
CLAUSE  a|b             one of these strings
        in [0, N)       every number of it. Those of a tensor are looked at where nobody has to wait for them, on a CPU
        with x and y    given where all of these are, and only there
        not with x or y = v
                        None where one of these is v
        N = M without   what a size is where this optional argument is None
        is N            the number is this size; without it nothing is held against the size
        gradient of x   the incoming gradient of a result, or the outgoing one of an argument; of a bool: whether it is
                        needed

M queries, N gallery rows (N = M and the pair (i, i) is left out when `ref_emb` is None), D features, C classes, B
matrices. A backward is told by name what it takes of the arguments and results of its forward. The module imports
nothing of torch, since the build reads it too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any, NamedTuple

TILE = 128
"""Side of the tiles of pairs of which `tile_active` keeps one byte each; the same in every backend."""

MAX_CENTERS_PER_CLASS = 128
"""What the kernels take: the centers of a class stand in one tile."""

_ROWS = """
Tensor embeddings (M, D) floating
Tensor labels (M,) int64
Tensor? ref_emb (N, D) like embeddings; N = M without
Tensor? ref_labels (N,) int64; with ref_emb
Tensor? ids (M,) int64
Tensor? ref_ids (N,) int64; with ref_emb and ids
int? ignore_index
bool normalize"""  # pairs of equal ids are excluded

_PRECISION = "str precision; ieee|tf32x3|tf32|bf16"

_PAIR_GRADIENTS = """
bool need_grad_ref; gradient of ref_emb
-> Tensor grad_embeddings (M, D) like embeddings; gradient of embeddings
-> Tensor grad_ref (N, D) if need_grad_ref else (0, D) like embeddings; gradient of ref_emb"""

_TILES = f"(ceil(M/{TILE}), ceil(N/{TILE}))"

# x = scale * (v - base) of a pair's value v, or scale * (v - bounds[side, i]). ramp and origin: of term "exp";
# temperature: of term "moment".
_SIDE = """
str {0}_term; none|hinge|softplus|exp|moment
float {0}_scale
float {0}_base
float {0}_ramp
float {0}_origin
float {0}_temperature"""

# weight_grad: the softmax weights of a moment are differentiated. grad: to both ends of a pair, or to the query only.
# apart: coincident pairs are excluded. neg_totals: of the negatives' sums and slopes only the totals over the queries
# are asked for, so that a kernel may leave a pair's part with either end, and nothing of them is differentiated.
_PAIR_LOSS = f"""
Tensor? bounds (2, M) compute embeddings; not with pos_term or neg_term = moment
int? classes; is C
str value; similarity|distance|squared{_SIDE.format("pos")}{_SIDE.format("neg")}
bool weight_grad
str grad; full|query
bool apart
bool neg_totals
{_PRECISION}
bool deterministic"""

_CLASSED_ROWS = _ROWS.replace("labels (M,) int64", "labels (M,) int64; in [0, C)").replace(
    "int64; with ref_emb\n", "int64; with ref_emb; in [0, C)\n"
)

# Of every positive: with all negatives, or with the nearest one that is farther.
_TRIPLET = f"""
str negative; all|semihard
float margin
bool soft
{_PRECISION}
bool deterministic"""

_SOFT_TRIPLE = f"""
int centers_per_class; in [1, {MAX_CENTERS_PER_CLASS}]
float la
float gamma; in (0, inf)
float margin
bool normalize
{_PRECISION}"""

TEXTS = {
    "pairwise_fwd": f"""
Tensor x (M, D) floating
Tensor? y (N, D) like x; N = M without
str metric; dot|euclidean|squared
bool normalize
{_PRECISION}
-> Tensor out (M, N) like x
""",
    "pairwise_bwd": f"""
Tensor grad_out (M, N) like x; gradient of out
Tensor x (M, D) floating
Tensor? y (N, D) like x; N = M without
str metric; dot|euclidean|squared
bool normalize
{_PRECISION}
-> Tensor grad_x (M, D) like x; gradient of x
-> Tensor grad_y (N, D) if y else (0, D) like x; gradient of y
""",
    # all but the last: of the positives and of the negatives of each query
    "pair_loss_fwd": f"""{_CLASSED_ROWS}{_PAIR_LOSS}
bool check_finite
-> Tensor stats (2, M) compute embeddings
-> Tensor log_sums (2, M) compute embeddings
-> Tensor sums (2, M) compute embeddings
-> Tensor members (2, M) compute embeddings
-> Tensor slopes (2, M) compute embeddings
-> Tensor tile_active {_TILES} uint8
""",
    "pair_loss_bwd": f"""
Tensor grad_stats (2, M) compute embeddings; gradient of stats
Tensor grad_log_sums (2, M) compute embeddings; gradient of log_sums
Tensor grad_sums (2, M) compute embeddings; gradient of sums{_CLASSED_ROWS}
Tensor stats (2, M) compute embeddings
Tensor log_sums (2, M) compute embeddings
Tensor tile_active {_TILES} uint8{_PAIR_LOSS}{_PAIR_GRADIENTS}
""",
    # loss_sum, nonzero and count: of the triplets of each query
    "triplet_fwd": f"""{_ROWS}{_TRIPLET}
bool check_finite
-> Tensor loss_sum (M,) compute embeddings
-> Tensor nonzero (M,) int64
-> Tensor count (M,) int64
-> Tensor tile_active {_TILES} if negative = all else (0, 0) uint8
""",
    "triplet_bwd": f"""
Tensor grad_loss_sum (M,) compute embeddings; gradient of loss_sum{_ROWS}
Tensor tile_active {_TILES} if negative = all else (0, 0) uint8{_TRIPLET}{_PAIR_GRADIENTS}
""",
    "nearest_positive_fwd": f"""{_ROWS}
{_PRECISION}
bool check_finite
-> Tensor distance (M,) compute embeddings
-> Tensor index (M,) int64
""",
    "nearest_positive_bwd": f"""
Tensor grad_distance (M,) compute embeddings; gradient of distance
Tensor embeddings (M, D) floating
Tensor? ref_emb (N, D) like embeddings; N = M without
Tensor index (M,) int64; in [-1, N)
bool normalize{_PAIR_GRADIENTS}
""",
    "mine_fwd": f"""{_ROWS}
str positive; easy|hard
str negative; hard|semihard
{_PRECISION}
bool check_finite
-> Tensor pos_distance (M,) compute embeddings
-> Tensor pos_index (M,) int64
-> Tensor neg_distance (M,) compute embeddings
-> Tensor neg_index (M,) int64
""",
    "mine_bwd": f"""
Tensor grad_pos (M,) compute embeddings; gradient of pos_distance
Tensor grad_neg (M,) compute embeddings; gradient of neg_distance
Tensor embeddings (M, D) floating
Tensor? ref_emb (N, D) like embeddings; N = M without
Tensor pos_index (M,) int64; in [-1, N)
Tensor neg_index (M,) int64; in [-1, N)
bool normalize{_PAIR_GRADIENTS}
""",
    # index: of drawn negatives, -1 where there is none
    "distance_weighted_fwd": f"""{_ROWS}
Tensor uniforms (M, S) float64; in [0, 1)
float cutoff; in (0, nonzero_loss_cutoff)
float nonzero_loss_cutoff; in (0, 2]
{_PRECISION}
bool check_finite
-> Tensor index (M, S) int64
""",
    # of A the lower triangle is read
    "cholesky_fwd": """
Tensor A (B, n, n) float64|float32
bool check
bool need_inverse
-> Tensor logdet (B,) like A
-> Tensor inverse (B, n, n) if need_inverse else (0, n, n) like A
""",
    "cholesky_bwd": """
Tensor grad_logdet (B,) like inverse; gradient of logdet
Tensor inverse (B, n, n) float64|float32
-> Tensor grad_A (B, n, n) like inverse; gradient of A
""",
    # without labels the rate of all rows
    "coding_rate_fwd": f"""
Tensor z (M, D) floating
Tensor? labels (M,) int64
float eps_squared; in (0, inf)
float gain; in (0, inf)
str scale; mcr2|official_proxy
bool normalize
{_PRECISION}
bool need_grad
-> Tensor rate () compute z
-> Tensor rate_grad (M, D) if need_grad else (0, D) like z
""",
    "coding_rate_bwd": """
Tensor grad_rate () compute rate_grad; gradient of rate
Tensor rate_grad (M, D) floating
-> Tensor grad_z (M, D) like rate_grad; gradient of z
""",
    # row i of proxies belongs to row i of z
    "spherical_expansion_fwd": """
Tensor z (k, D) floating
Tensor proxies (k, D) like z
Tensor noise (k, n-1, D) like z
int n; in [1, D-1]
-> Tensor embeddings (k*n, D) like z
-> Tensor valid (k,) bool
""",
    "spherical_expansion_bwd": """
Tensor grad (k*n, D) like z; gradient of embeddings
Tensor z (k, D) floating
Tensor proxies (k, D) like z
Tensor noise (k, n-1, D) like z
int n; in [1, D-1]
-> Tensor grad_z (k, D) like z; gradient of z
""",
    # centers class by class; row_stats: log of the sum of e^logit over the classes, and the probability of those not
    # its own
    "soft_triple_fwd": f"""
Tensor embeddings (M, D) floating
Tensor labels (M,) int64; in [0, C)
Tensor centers (C*centers_per_class, D) like embeddings{_SOFT_TRIPLE}
-> Tensor loss (M,) compute embeddings
-> Tensor row_stats (2, M) compute embeddings
""",
    "soft_triple_bwd": f"""
Tensor grad_loss (M,) compute embeddings; gradient of loss
Tensor embeddings (M, D) floating
Tensor labels (M,) int64; in [0, C)
Tensor centers (C*centers_per_class, D) like embeddings
Tensor row_stats (2, M) compute embeddings{_SOFT_TRIPLE}
-> Tensor grad_embeddings (M, D) like embeddings; gradient of embeddings
-> Tensor grad_centers (C*centers_per_class, D) like embeddings; gradient of centers
""",
}


class Expression(NamedTuple):
    """A size or the end of an interval."""

    text: str
    code: CodeType
    names: tuple[str, ...]

    @staticmethod
    @functools.cache
    def of(text: str) -> Expression:
        code = compile(re.sub(r"ceil\((\w+)/(\d+)\)", r"-(-\1 // \2)", text), text, "eval")
        return Expression(text, code, code.co_names)

    def value(self, known: Mapping[str, Any]) -> Any:
        return eval(self.code, {"__builtins__": {}, "inf": float("inf")}, known)


class Dims(NamedTuple):
    text: str
    sizes: tuple[Expression, ...]

    @staticmethod
    @functools.cache
    def of(text: str) -> Dims:
        return Dims(text, tuple(Expression.of(size.strip()) for size in text[1:-1].split(",") if size.strip()))


class Shape(NamedTuple):
    dims: Dims
    condition: str = ""  # under which it is `dims`; empty for always
    otherwise: Dims = Dims("()", ())

    def choose(self, given: Mapping[str, Any]) -> Dims:
        name, _, value = self.condition.partition(" = ")
        met = not name or (given[name] == value if value else given[name] is not None and given[name] is not False)
        return self.dims if met else self.otherwise


class Interval(NamedTuple):
    text: str
    low: Expression
    high: Expression

    def ends(self, known: Mapping[str, Any]) -> tuple[Any, Any]:
        """None where it follows from an optional argument that is not given: there it holds nothing off."""
        return self.low.value(known), self.high.value(known)

    def begins(self, value: Any, known: Mapping[str, Any]) -> bool:
        """Whether the value is not below it; false for NaN."""
        low = self.low.value(known)
        return bool(low <= value if self.text[0] == "[" else low < value)

    def holds(self, value: Any, known: Mapping[str, Any]) -> bool:
        """Whether the value lies inside; false for NaN."""
        high = self.high.value(known)
        return self.begins(value, known) and bool(value <= high if self.text[-1] == "]" else value < high)

    @property
    def names(self) -> tuple[str, ...]:
        return self.low.names + self.high.names


class Argument(NamedTuple):
    """A line of the contract."""

    type: str  # Tensor, int, float, bool or str
    optional: bool
    name: str
    shape: Shape | None
    dtype: str
    choices: tuple[str, ...]
    interval: Interval | None
    partners: tuple[str, ...]
    excluded: tuple[tuple[str, str], ...]  # other arguments, and their value with which there is none
    without: tuple[str, str] | None  # a size, and what it is without this argument
    gradient_of: str
    size: str  # that this number is

    @property
    def like(self) -> str:
        """The argument whose dtype decides about this one's."""
        return self.dtype.partition(" ")[2]

    @property
    def mentions(self) -> set[str]:
        """Names that what is expected of this argument follows from."""
        of_shape = () if self.shape is None else (size.names for size in self.shape.dims.sizes)
        condition = "" if self.shape is None else self.shape.condition.partition(" = ")[0]
        of_numbers = self.interval.names if self.interval and self.type != "Tensor" else ()
        return {self.like, condition, *of_numbers}.union(*of_shape)


_DIMS = r"\((?:[^()]|\([^()]*\))*\)"
_HEAD = re.compile(
    rf"(?P<type>Tensor|int|float|bool|str)(?P<optional>\??) (?P<name>\w+)"
    rf"(?: (?P<dims>{_DIMS})(?: if (?P<condition>\w+(?: = \w+)?) else (?P<otherwise>{_DIMS}))?)?"
    r"(?: (?P<dtype>(?:(?:like|compute) )?[\w|]+))?"
)
_CLAUSES = re.compile(
    r"(?:in (?P<interval>[\[(](?P<low>.+), (?P<high>.+)[\])])|with (?P<partners>\w+(?: and \w+)*)"
    r"|not with (?P<others>\w+(?: or \w+)*) = (?P<value>\w+)"
    r"|(?P<size>\w+) = (?P<instead>\w+) without|is (?P<number>\w+)|gradient of (?P<gradient_of>\w+)"
    r"|(?P<choices>\w+(?:\|\w+)+))"
)


def _argument(line: str) -> Argument:
    head, *clauses = line.split("; ")
    found = _HEAD.fullmatch(head)
    said: dict[str, str] = {}
    for clause in clauses:
        match = _CLAUSES.fullmatch(clause)
        if match is None:
            raise SyntaxError(f"a line of the contract: {line}")
        said |= {key: value for key, value in match.groupdict().items() if value is not None}
    if found is None:
        raise SyntaxError(f"a line of the contract: {line}")
    shape = None
    if found["dims"]:
        shape = Shape(Dims.of(found["dims"]), found["condition"] or "", Dims.of(found["otherwise"] or "()"))
    return Argument(
        type=found["type"],
        optional=bool(found["optional"]),
        name=found["name"],
        shape=shape,
        dtype=(found["dtype"] or "").replace("floating", "float64|float32|bfloat16|float16"),
        choices=tuple(said["choices"].split("|")) if "choices" in said else (),
        interval=(
            Interval(said["interval"], Expression.of(said["low"]), Expression.of(said["high"]))
            if "interval" in said
            else None
        ),
        partners=tuple(said["partners"].split(" and ")) if "partners" in said else (),
        excluded=tuple((other, said["value"]) for other in said["others"].split(" or ")) if "others" in said else (),
        without=(said["size"], said["instead"]) if "size" in said else None,
        gradient_of=said.get("gradient_of", ""),
        size=said.get("number", ""),
    )


class Operator(NamedTuple):
    name: str
    arguments: tuple[Argument, ...]
    results: tuple[Argument, ...]
    in_order: tuple[Argument, ...]  # of checking: each after those that it mentions
    names: tuple[str, ...]  # of the arguments, as the schema has them

    @staticmethod
    def of(name: str, text: str) -> Operator:
        lines = text.strip().splitlines()
        arguments = [_argument(line) for line in lines if not line.startswith("-> ")]
        results = [_argument(line[3:]) for line in lines if line.startswith("-> ")]
        # What is learnt from an incoming gradient would be held against the arguments themselves: those come last.
        in_order: list[Argument] = []
        by_rank = sorted(arguments, key=lambda a: bool(a.gradient_of))
        while waiting := [a for a in by_rank if a not in in_order]:
            unknown = {a.name for a in waiting}
            in_order.append(next(a for a in waiting if not unknown & a.mentions))
        names = tuple(a.name for a in arguments)
        return Operator(name, tuple(arguments), tuple(results), tuple(in_order), names)

    @property
    def schema(self) -> str:
        takes = ", ".join(f"{a.type}{'?' * a.optional} {a.name}" for a in self.arguments)
        gives = ", ".join(a.type for a in self.results)
        return f"({takes}) -> {gives if len(self.results) == 1 else f'({gives})'}"

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return dict(zip(self.names, values, strict=True))


OPERATORS = {name: Operator.of(name, text) for name, text in TEXTS.items()}
SCHEMAS = {name: operator.schema for name, operator in OPERATORS.items()}

# What errors call an operator where a user knows it by the name of its public function.
_SUBJECTS = {"cholesky_fwd": "cholesky_logdet", "soft_triple_fwd": "soft_triple_loss"}


def subject(operator: str) -> str:
    """What errors of this operator start with."""
    return _SUBJECTS.get(operator, operator.removesuffix("_fwd"))
