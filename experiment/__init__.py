"""What every script shares: options, run folder, checkpoint, evaluation, tables."""
