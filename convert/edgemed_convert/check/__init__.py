"""The gate: what every file must pass before it is packed."""
