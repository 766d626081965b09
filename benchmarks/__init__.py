"""Side-by-side measurements: ``make bench``. Whole processes, alternating runs, ratios and peak memory."""
