"""Experts, gate, mixture and their training: torch, and nothing that waits."""
