"""Histograms with exact sums: the same bits for any order of filling and merging. Reads and writes ROOT's TH1 to TH3.

In: arrays and weights (float64). Out: exact histograms, `hist.Hist` objects and ROOT files. This package knows nothing
of campaigns.
"""
