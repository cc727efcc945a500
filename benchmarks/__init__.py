"""What the toolkit claims about speed and quality, one command each; not part of the package."""
