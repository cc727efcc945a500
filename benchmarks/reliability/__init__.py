"""What faults, kills and long hours do to a run."""
