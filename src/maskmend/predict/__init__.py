"""Prediction: sliding window, uncertainty, and back to the input's own grid."""
