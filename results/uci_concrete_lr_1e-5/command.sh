python uci_run.py -data concrete -c all -seeds 20 -lr 1e-5 -anneal 1
