"""Run folders: settings, metrics, checkpoints and progress. They survive a crash or a kill."""
