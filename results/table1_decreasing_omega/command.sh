python lr_simulation.py -seeds 10 -out runs/lr_simulation/table1
