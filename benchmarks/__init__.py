"""Side-by-side measurements of whole processes: ``make bench``. See benchmarks/README.md."""
