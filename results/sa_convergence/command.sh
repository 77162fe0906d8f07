python sa_convergence.py
