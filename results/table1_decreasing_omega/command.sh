python lr_simulation.py -seeds 10 -dc 10 -da 1000 -dalpha 0.7 -out runs/lr_simulation/table1_paper_omega
