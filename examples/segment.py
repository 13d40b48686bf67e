"""Fine-tune an encoder, as `ahm-gym finetune` does: `python examples/segment.py --encoder RUN_DIR --labels 10`.

With --probe, evaluate the frozen encoder in seconds, as `ahm-gym probe` does.
"""

import sys

from ahm_gym.cli import main

if __name__ == "__main__":
    flags = [flag for flag in sys.argv[1:] if flag != "--probe"]
    main(["probe" if "--probe" in sys.argv else "finetune", *flags])
