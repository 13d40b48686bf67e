"""A pretraining run: settings, the loop, who chooses the masks, and what is recorded."""
