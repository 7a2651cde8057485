"""moed: one daemon that joins many owners' models into a single mixture of experts."""

__version__ = "0.1.0"
