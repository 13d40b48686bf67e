"""The masked autoencoder: patches, encoders, decoders, and the one place that updates it."""
