python uci_run.py -data boston -c all -seeds 100 -resume 1
