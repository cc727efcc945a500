"""The method, its runs, their cost and their watch."""
