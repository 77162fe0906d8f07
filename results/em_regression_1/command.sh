python em_regression.py -example 1 -resume 1 -save_every 60 -out runs/em_regression/example1
