"""Run folders: settings, metrics, checkpoints and progress that survive any end of a program."""
