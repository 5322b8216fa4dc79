"""The report on the CUDA kernels reads the compiler right, and refuses what kernels.txt forbids."""

from __future__ import annotations

import pytest

from bench.report import resources

RULES = resources.read_rules(
    """
# kernel        shared  what
tile<(?!double) 65536   hot product
tile<           0       hot
sort            0       # anything goes
"""
)
USAGE = """
Fatbin elf code:
Resource usage:
 Common:
  GLOBAL:28 CONSTANT[4]:224
 Function _Z4tileIfEvPT_i:
  REG:168 STACK:0 SHARED:512 LOCAL:0 CONSTANT[0]:540 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z4sortv:
  REG:32 STACK:48 SHARED:0 LOCAL:0 CONSTANT[0]:556 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
CODE = """
	code for sm_90
		Function : _Z4tileIfEvPT_i
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                      /* 0x00000a00ff017b82 */
                                                                               /* 0x000fe20000000800 */
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;       /* 0x0000000c0804723c */
        /*0020*/              @!P0 HMMA.1688.F32.TF32 R4, R8, R12, R4 ;        /* 0x0000000c0804723c */
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4] ;  /* 0x0000000c0804723c */
		Function : _Z4sortv
        /*0000*/                   STL.64 [R1+0x8], R2 ;                       /* 0x0000080201007387 */
        /*12f10*/             @P3  LDL R2, [R1+0x8] ;                          /* 0x0000080001027983 */
        /*12f20*/                  FFMA R2, R2, R2, R2 ;                       /* 0x0000080001027983 */
"""
ELF = """
.nv.info._Z4tileIfEvPT_i
	Attribute:	EIATTR_MAX_THREADS
	Format:	EIFMT_SVAL
	Value:	0x80 0x2 0x1
	Attribute:	EIATTR_FRAME_SIZE
	Value:	function: _Z4tileIfEvPT_i(0x29)	frame size: 0x7d8
.text._Z4sortv
"""


def kernel(**changes) -> dict:
    return {"registers": 64, "stack": 0, "spills": 0, "shared": 0, "threads": 128, "tensor": {"HMMA": 8}} | changes


def test_usage_code_and_threads_are_read():
    usage = resources.read_usage(USAGE.splitlines())
    assert usage["_Z4tileIfEvPT_i"] == {"registers": 168, "stack": 0, "shared": 512}
    assert usage["_Z4sortv"] == {"registers": 32, "stack": 48, "shared": 0}
    code = resources.read_code(CODE.splitlines())
    assert code == {"_Z4tileIfEvPT_i": {"HMMA": 2, "HGMMA": 1}, "_Z4sortv": {"STL": 1, "LDL": 1}}
    assert resources.read_threads(ELF.splitlines()) == {"_Z4tileIfEvPT_i": 256}


@pytest.mark.parametrize("opcode", ["HMMA", "IMMA", "DMMA", "HGMMA", "QGMMA", "UTCHMMA", "UTCQMMA", "OMMA"])
def test_tensor_core_instructions(opcode):
    assert resources.TENSOR.fullmatch(opcode)


@pytest.mark.parametrize("opcode", ["FFMA", "HFMA2", "IMAD", "DFMA", "UTCBAR", "LDSM"])
def test_other_instructions(opcode):
    assert not resources.TENSOR.fullmatch(opcode)


@pytest.mark.parametrize(
    "architecture, registers, threads, shared, expected",
    [
        ("80", 32, 256, 0, 1.0),
        ("80", 128, 256, 0, 0.25),
        ("80", 129, 256, 0, 0.125),
        ("90", 168, 128, 0, 0.1875),
        ("90", 32, 256, 99 * 1024, 0.25),
        ("90", 32, 32, 0, 0.5),
        ("120", 32, 1024, 0, 32 / 48),
        ("120", 255, 1024, 0, 0.0),
    ],
)
def test_occupancy(architecture, registers, threads, shared, expected):
    assert resources.occupancy(architecture, registers, threads, shared) == expected


def test_names_are_readable():
    in_file = "_ZN3dml47_GLOBAL__N__658e14f6_14_coding_rate_cu_d8623d9c10sum_kernelIdEEvPKT_l"
    assert resources.plain(["_ZN3dml4tileIfEEvPT_i", in_file]) == {
        "_ZN3dml4tileIfEEvPT_i": "tile<float>",
        in_file: "coding_rate.sum_kernel<double>",
    }


def test_what_the_table_forbids():
    def found(**kernels) -> list[str]:
        named = {"tile<float>": kernel(), "tile<double>": kernel(tensor={}), "sort": kernel(tensor={}, spills=9)}
        return resources.problems(
            {"90": named | {name.replace("_", "<") + ">": k for name, k in kernels.items()}}, RULES
        )

    assert found() == []
    assert found(tile_float=kernel(tensor={})) == ["tile<float> has no tensor-core instruction on sm_90"]
    assert found(tile_double=kernel(spills=2, stack=8)) == ["tile<double> spills on sm_90: 8 bytes of stack"]
    assert found(other_float=kernel()) == ["other<float> has no line in kernels.txt"]
    assert resources.problems({"90": {"sort": kernel()}}, RULES) == [
        "kernels.txt: tile< is no kernel",
        "kernels.txt: tile<(?!double) is no kernel",
    ]
    many = {f"sort<{number}>": kernel() for number in range(resources.MOST_KERNELS + 1)}
    assert f"{len(many)} kernels for sm_90, more than {resources.MOST_KERNELS}" in resources.problems(
        {"90": many}, RULES
    )
