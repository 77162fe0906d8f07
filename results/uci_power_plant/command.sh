python uci_run.py -data power-plant -c all -seeds 20 -resume 1
