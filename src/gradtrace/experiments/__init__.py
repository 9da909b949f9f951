"""Experiments that put gradient traces to the test on real text."""
