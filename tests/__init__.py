"""Tests, their tools, and the longer checks."""
