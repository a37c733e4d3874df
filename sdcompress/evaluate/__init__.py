"""Judges a candidate against the baseline: pictures, metrics, SQNR, time and memory."""
