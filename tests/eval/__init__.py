"""Measures and diagnostics."""
