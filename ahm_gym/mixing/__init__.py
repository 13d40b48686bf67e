"""Training as a choice between strategies of masking.

`strategies` names the strategies, `battery` measures on held-out masks what the autoencoder has learned, and `bandit`
chooses between strategies by that. The environment `AHM/Curriculum-v0` and the mask policy `thompson` share them.
"""
