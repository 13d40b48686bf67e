"""Compare mask policies, as `ahm-gym benchmark` does: `python examples/benchmark.py --policies random,a3c`."""

import sys

from ahm_gym.cli import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
