"""A volume of 512 x 512 x 400 is predicted within 6 GB, measured from outside the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

CODE = """
import json, resource, sys
from dataclasses import dataclass, field
from pathlib import Path
import torch
torch.set_num_threads(1)
from maskmend.config import Config
from maskmend.data.plan import ChannelPlan, Plan
from maskmend.methods.base import Method
from maskmend.predict.run import predict

class Three(Method):
    def predict(self, image):
        return torch.cat([-image, image, 1 - image.abs()], 1).softmax(1)

@dataclass
class Run:
    folder: Path
    plan: Plan
    config: Config = field(default_factory=Config)
    def method(self):
        return Three()

folder, spacing = Path(sys.argv[1]), json.loads(sys.argv[2])
(folder / "model.safetensors").write_bytes(b"")
plan = Plan(ndim=3, spacing_mm=spacing, channels=(ChannelPlan(name="MR", scheme="zscore"),), batch=2, depth=4,
            classes={"background": 0, "a": 1, "b": 2}, patch=(64, 96, 96), flips=(False,) * 3)
predict(Run(folder, plan), folder / "in", folder / "out", save=json.loads(sys.argv[3]), overlap=0.5)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spacing", "save"),
    [([1.0, 1.0, 1.0], ["labels"]), ([1.5, 1.2, 1.2], ["labels", "probs", "uncertainty"])],
)
def test_large_volume_within_six_gigabytes(tmp_path: Path, spacing: list[float], save: list[str]) -> None:
    import nibabel

    volume = np.zeros((512, 512, 400), np.int16)
    volume[100:300, 150:350, 60:300] = 400
    volume[::7, ::5, ::3] += 30
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):  # two, because what the first leaves behind must not add to the second
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "in" / f"{name}.nii.gz")
    arguments = [str(tmp_path), json.dumps(spacing), json.dumps(save)]
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    )  # fmt: skip
    peak = int(done.stdout) / 2**20
    print(f"peak {peak:.2f} GiB")
    assert peak < 6 * 1e9 / 2**30
    assert nibabel.load(tmp_path / "out" / "b.nii.gz").shape == volume.shape
