"""Finding out which variable is which without being told: names, numbers, layers, order of use."""
