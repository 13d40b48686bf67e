"""MaskBench: agents and mask policies scored on frozen autoencoders, without labels."""
