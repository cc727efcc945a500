"""Models or images in, numbers and pictures out."""
