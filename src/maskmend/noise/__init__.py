"""Simulate flawed labels: every flaw is seeded, in millimetres, and recorded."""
