"""The op `linear`: a matrix product with a fixed weight."""
