"""From one score a patch to the patches that are masked."""
