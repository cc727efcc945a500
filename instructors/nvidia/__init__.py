"""EDM and EDM2 checkpoints: networks that diffusers cannot express, and converters."""
