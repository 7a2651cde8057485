"""The service's unit files, shipped as package data."""
