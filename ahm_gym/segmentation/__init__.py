"""Fine-tuning an encoder for segmentation, probing it, and measuring the result."""
