"""Pretrain an encoder with learned masks, as `ahm-gym pretrain` does: `python examples/pretrain.py --data scans/`."""

import sys

from ahm_gym.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
