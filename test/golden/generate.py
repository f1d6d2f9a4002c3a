"""Makes the golden values that `test/core/emlx/golden_test.exs` and `kernels_test.exs` compare against.

Every operation of the native crate's table is computed here by NumPy, in float64 where the operation is one of real
numbers, after its inputs were rounded to their type. SciPy gives the few functions that NumPy lacks, and MLX's own
Python package what only MLX defines (quantized formats, random numbers, result types). Each case that MLX can compute
as well is computed by both here, and where they differ this prints it: such a case asks for what the table of
operations documents (`native/src/op`), which is then not what MLX does by itself.

`mix test` reads the files and needs none of this. To make them again, with any Python from 3.10 on:

    pip install --target DIR mlx==0.32.2 mlx-cpu==0.32.2 numpy==2.4.6 scipy==1.17.1 ml_dtypes==0.6.0
    PYTHONPATH=DIR python3 test/golden/generate.py [family …]

Written are, for each family, `data/<family>.terms` (Erlang terms, one map a case, for `:file.consult/1`) and
`data/<family>.bin` (the elements, little-endian, row-major). A case:

    #{name => <<"sum/f32 axes 0">>, op => {sum, #{axes => [0], keepdims => false}},
      inputs => [{f32, [2,3], Offset, Length} | nil], outputs => [{f32, [3], Offset, Length}],
      tolerance => exact | … | {Absolute, Relative}, form => …}

`tolerance` names a class of `test/support/tolerance.ex`. `form`, where there is one, says how outputs that are not
unique (eigenvectors, partitions) are brought into a form that is; `outputs` are then in that form. The generator is
seeded case by case, so that adding one changes no other.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from families import common  # noqa: E402

FAMILIES = [
    "elementwise",
    "binary",
    "types",
    "reductions",
    "order",
    "shapes",
    "parts",
    "products",
    "windows",
    "spectra",
    "linalg",
    "random",
    "creation",
    "quantized",
    "kernels",
]


def main():
    chosen = sys.argv[1:] or FAMILIES
    data = Path(__file__).parent / "data"
    data.mkdir(exist_ok=True)
    total = 0
    for family in chosen:
        cases = common.Cases(family)
        importlib.import_module(f"families.{family}").add(cases)
        total += cases.write(data)
    print(f"{total} cases")


main()
