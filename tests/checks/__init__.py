"""Longer checks: fuzzers, kills, versions, documented commands."""
