"""The language of rule files: patterns over paths, operations, and where in the text everything stands."""
