"""What the toolkit does when files are hostile and runs are killed."""
