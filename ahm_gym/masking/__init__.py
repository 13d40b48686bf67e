"""Turns one score for each patch into masks.

`selection` selects patches by their scores and at random, and `spread` keeps some patches of every window visible.
`drawing` draws whole `masks` with both. `schedules` changes their shares and ratios during training.
"""
