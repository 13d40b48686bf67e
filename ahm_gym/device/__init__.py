"""The device of a run: its choice, transfers to a GPU, CUDA graphs, and weights that processes share."""
