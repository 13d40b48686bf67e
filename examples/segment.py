"""Fine-tune an encoder, as `ahm-gym finetune` does: `python examples/segment.py --encoder RUN_DIR --labels 10`.

With --probe, evaluate the frozen encoder in seconds, as `ahm-gym probe` does.
"""

import sys

from ahm_gym.cli import main

if __name__ == "__main__":
    flags = [flag for flag in sys.argv[1:] if flag not in ("--probe", "--no-probe")]
    if "--probe" in sys.argv:
        unused = ("--no-resume", "--no-freeze", "--no-native-resolution")
        main(["probe", *(flag for flag in flags if flag not in unused)])
    else:
        main(["finetune", *flags])
