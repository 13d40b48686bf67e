"""Settings searched by Optuna: what is searched, the trials, and the report."""
