"""Runs of one seed or several: from options to a result, and resumption after an interruption."""
