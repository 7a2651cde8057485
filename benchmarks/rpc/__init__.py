"""Tensor calls between two processes on loopback, beside hivemind's in the same run."""
