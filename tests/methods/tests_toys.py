from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 3


class ToyNetwork(nn.Module):
    """Two small convolutions with dropout, in 2-D or 3-D by the input it gets."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        conv = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.body = nn.Sequential(
            conv(1, 8, 3, padding=1), nn.LeakyReLU(), nn.Dropout(0.1), conv(8, CLASSES, 3, padding=1)
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)


def toy_network(ndim: int = 2) -> nn.Module:
    return ToyNetwork(ndim)


def toy_batch(
    ndim: int = 2, memory: bool = False, size: int = 12, batch: int = 4, raters: bool = False
) -> dict:
    """Images whose classes are bands of intensity, so that the toy network can learn them."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, *[size] * ndim)
    label = torch.zeros(shape, dtype=torch.long)
    label[..., 3:9] = 1
    label[..., 6:9] = 2
    image = label.float() + 0.1 * torch.randn(shape, generator=generator)
    valid = torch.ones(shape, dtype=torch.bool)
    valid[:, :2] = False
    result = {
        "image": image.unsqueeze(1), "label": label, "valid": valid, "trusted": torch.zeros(batch, dtype=torch.bool),
        "case": [f"c{i}" for i in range(batch)], "index": torch.arange(batch),
    }  # fmt: skip
    if memory:
        result["memory"] = torch.rand((batch, CLASSES, *shape[1:]), generator=generator).mul(3).softmax(1)
    if raters:
        result |= toy_raters(label, valid)
    return result


def toy_raters(label: Tensor, valid: Tensor) -> dict:
    """Three raters: one is right, one draws a class one voxel too wide, one is right but left out half of the cases."""
    wide = torch.where((label == 0) & (label.roll(-1, -1) == 1), 1, label)
    votes = torch.stack([label, wide, label], dim=1).masked_fill(~valid.unsqueeze(1), -1)
    rated = torch.ones(votes.shape[:2], dtype=torch.bool)
    rated[::2, 2] = False
    votes[~rated] = -1
    return {"raters": votes, "rated": rated}
