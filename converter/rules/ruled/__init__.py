"""Applying the rules of a file to the variables of a checkpoint."""
