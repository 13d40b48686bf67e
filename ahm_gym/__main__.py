"""`python -m ahm_gym` is `ahm-gym`."""

from ahm_gym.cli import main

if __name__ == "__main__":
    main()
