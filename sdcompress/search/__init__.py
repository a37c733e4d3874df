"""Finds what each layer of the UNet may be compressed to: sensitivity, cost, and a choice of both.

The parts know nothing of recipes' files and stages; :mod:`sdcompress.searching` joins them.
"""
