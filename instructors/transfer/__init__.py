"""Transfer of an instructor to a small target set through a shared embedding."""
