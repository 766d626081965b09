"""What differs between the frameworks: names and operations on arrays."""
