import json
from pathlib import Path
from types import MappingProxyType

import numpy as np

from maskmend.plain import plain


def test_what_json_lacks_becomes_what_it_has():
    given = MappingProxyType({
        "nan": float("nan"), "inf": [np.float32("inf"), -np.inf], 3: (np.int64(7), np.float64(0.5), np.bool_(True)),
        "array": np.array([[1.0, np.nan]]), "path": Path("a/b"), "kept": [None, True, 2, 0.25, "text"],
    })  # fmt: skip
    assert json.loads(json.dumps(plain(given), allow_nan=False)) == {
        "nan": None, "inf": [None, None], "3": [7, 0.5, True],
        "array": [[1.0, None]], "path": "a/b", "kept": [None, True, 2, 0.25, "text"],
    }  # fmt: skip
