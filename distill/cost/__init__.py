"""What a run holds and takes, before it is started."""
