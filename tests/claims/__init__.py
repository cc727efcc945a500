"""What documents, benchmarks and experiments claim, and what is packaged."""
