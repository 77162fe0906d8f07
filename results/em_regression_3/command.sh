python em_regression.py -example 3 -restarts 3 -resume 1 -save_every 60 -out runs/em_regression/example3
