python em_regression.py -example 2 -resume 1 -save_every 60 -out runs/em_regression/example2
