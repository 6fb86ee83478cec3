"""Masks of other cases, found among more cases than are compared at a time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from maskmend.audit.look import look_at
from maskmend.audit.mixups import BLOCK, FITS, Trace, elsewhere, soft_dice

CELLS = 60


def _traces(count: int, seed: int = 0) -> list[Trace]:
    """Each case with its own cells drawn, and seen by the model where they are drawn."""
    rng = np.random.default_rng(seed)
    drawn = [np.isin(np.arange(CELLS), rng.choice(CELLS, 12, replace=False)) for _ in range(count)]
    return [
        Trace(f"c{i:04d}", "sound", one.astype(np.float16), (0.9 * one).astype(np.float16), f"d{i}")
        for i, one in enumerate(drawn)
    ]


def test_exchanged_masks_are_found_whichever_cases_are_compared_together() -> None:
    traces = _traces(BLOCK + 40)
    first, second = traces[7], traces[BLOCK + 30]
    traces[7] = Trace(first.case, "mixed", second.mask, first.likely, second.digest + "x")
    traces[BLOCK + 30] = Trace(second.case, "mixed", first.mask, second.likely, first.digest + "x")
    found = elsewhere(traces)
    assert {case: other for case, (other, _) in found.items()} == {
        first.case: second.case,
        second.case: first.case,
    }
    for one, true in ((7, first), (BLOCK + 30, second)):
        own, best = (
            soft_dice(mask.astype(float), true.likely.astype(float)) for mask in (traces[one].mask, true.mask)
        )
        assert best > FITS
        assert abs(found[true.case][1] - (best - own) / (1 - own)) < 1e-4


def test_a_mask_that_two_share_is_wrong_where_it_fits_worse() -> None:
    traces = _traces(BLOCK + 40)
    true, other = traces[BLOCK + 3], traces[4]
    traces[4] = Trace(other.case, "sound", true.mask, other.likely, true.digest)
    assert elsewhere(traces) == {other.case: (true.case, 0.95)}
    blank = [Trace(one.case, one.kind, one.mask, one.likely, "") for one in traces]
    assert elsewhere(blank) == {}, "masks too small to be equal by more than chance, of a simple kind"


def test_an_image_that_is_there_twice_is_no_wrong_file() -> None:
    """Two models see it a little differently, so its mask always fits one of both better."""
    traces = [replace(one, image=f"i{number}") for number, one in enumerate(_traces(20))]
    seen = (0.8 * traces[3].likely).astype(np.float16)
    same = replace(traces[3], case="copy", likely=seen)
    nearly = (0.99 * traces[3].likely).astype(np.float16)
    assert elsewhere([*traces, same]) == {}
    assert elsewhere([*traces, replace(same, image="other")]) == {"copy": ("c0003", 0.95)}
    assert elsewhere([*traces, replace(same, image="other", likely=nearly)]) == {}, "it fits both alike"


def test_of_one_case_nothing_is_said() -> None:
    assert elsewhere(_traces(1)) == {}


def _opinion(side: int) -> Any:
    """Of a mask of side times side voxels that the model sees there too."""
    label = np.zeros((30, 32), np.uint8)
    label[8 : 8 + side, 9 : 9 + side] = 1
    likely = (0.02 + 0.9 * label).astype(np.float32)
    return SimpleNamespace(look=look_at("a", np.stack([1 - likely, likely]), label, (1.0, 1.0), None))


def test_an_image_is_known_again_however_it_lies_in_memory() -> None:
    image = np.random.default_rng(0).normal(size=(1, 30, 32)).astype(np.float32)
    traces = [Trace.of(_opinion(9), "sound", one) for one in (image, np.asfortranarray(image), image + 1)]
    assert traces[0].image == traces[1].image != traces[2].image
    assert Trace.of(_opinion(9), "sound").image == ""
    assert Trace.of(_opinion(3), "sound", image).image == "", "nobody asks: such a mask is not compared"
