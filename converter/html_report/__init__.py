"""A report as one HTML page that needs nothing but itself, made from what ``--json`` prints."""
