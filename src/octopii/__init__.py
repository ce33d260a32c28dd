"""Octopii: replicate your own deterministic state machine over a cluster, from Python."""
