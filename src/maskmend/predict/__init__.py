"""Prediction: sliding window, uncertainty, and back to the input's own grid."""

from maskmend.callable_package import make_callable

make_callable(__name__, "maskmend.predict.run", "predict")
