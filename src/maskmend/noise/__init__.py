"""Simulate flawed labels: every flaw is seeded, in millimetres, replayable, and recorded."""

from __future__ import annotations

from maskmend.noise.affine import Move
from maskmend.noise.automatic import Predictions, RegionGrow, Scribbles
from maskmend.noise.base import Annotation, LabelNoise, flaw
from maskmend.noise.boundary import Dilate, EdgeCircles, Erode
from maskmend.noise.calibrate import ToChange
from maskmend.noise.components import Blank, DropComponents, Fracture, InventComponents, SwapClasses
from maskmend.noise.compose import Compose, InPixels, Nothing, OneOf, PerClass
from maskmend.noise.description import build
from maskmend.noise.elastic import Elastic
from maskmend.noise.markov import MarkovWalk
from maskmend.noise.outline import Polygon
from maskmend.noise.slices import EachSlice, SkipSlices

__all__ = [
    "Annotation", "Blank", "Compose", "Dilate", "DropComponents", "EachSlice", "EdgeCircles", "Elastic", "Erode",
    "Fracture", "InPixels", "InventComponents", "LabelNoise", "MarkovWalk", "Move", "Nothing", "OneOf", "PerClass",
    "Polygon", "Predictions", "RegionGrow", "Scribbles", "SkipSlices", "SwapClasses", "ToChange", "build", "flaw",
]  # fmt: skip
