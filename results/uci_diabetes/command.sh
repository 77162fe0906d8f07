python uci_run.py -data diabetes -c all -seeds 20 -resume 1
