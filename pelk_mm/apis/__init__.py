"""What the tools do with a whole run, model or checkpoint."""
