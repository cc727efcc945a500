"""Training an instructor on images."""
