python uci_run.py -table 1 -resume 1
