"""Does the destination hold what the source holds, and do both frameworks compute the same?"""
