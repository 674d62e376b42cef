"""Limits on memory: what fits, what stays, what leaves between the stages of a run."""
