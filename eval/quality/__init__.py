"""FID and its relatives: extractors, metrics, protocols."""
