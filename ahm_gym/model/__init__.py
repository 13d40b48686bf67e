"""The masked autoencoder: patches, encoders, decoders, and the one class that updates it."""

import ahm_gym._compat  # noqa: F401
