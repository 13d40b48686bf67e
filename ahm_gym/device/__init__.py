"""Where tensors live: transfers to a GPU, recorded work, and weights that processes share."""
