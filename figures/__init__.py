"""One module per figure. A figure reads result files only."""
