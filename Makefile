# make demo       set up .venv and reproduce the first experiment
# make test       set up .venv and run the whole test suite
# make test-fast  the same without the tests that kill processes, compile or sample for long
# make results    rerun what results/ and the committed figures hold; 25 minutes on two cores, needs the UCI files
# make results-images  the same for the MNIST and Fashion-MNIST table and figures; two hours on two cores
# make results-resnet  the same for ResNet20 on CIFAR10; two and a half hours on two cores
#                 CHECKPOINT=FILE: from the authors' dense checkpoint, as the committed results
# make results-sbp  the same for structured Bayesian pruning on MNIST; two hours on two cores
# make results-em  the same for EM-MCMC: simulated regressions, Fashion-MNIST, CIFAR10; three hours on two cores
# make bench      time the programs against plain loops, results/benchmarks.csv

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/.requirements
DEV := $(VENV)/.requirements-dev

.PHONY: demo test test-fast results results-images figures-images results-resnet results-sbp results-em bench lint clean

demo: $(RUN)
	$(VENV)/bin/python lr_simulation.py -resume 1

test: $(DEV) lint
	$(VENV)/bin/python -m pytest -n 2

test-fast: $(DEV) lint
	$(VENV)/bin/python -m pytest -n 2 -m "not slow"

bench: $(RUN)
	$(VENV)/bin/python -m benchmarks

# $(call keep,RUN_FOLDER,NAME): the small files of a run folder become results/NAME
keep = mkdir -p results/$(2) && cp $(addprefix $(1)/,args.json command.sh environment.json summary.json table.csv) results/$(2)

results: $(RUN)
	$(VENV)/bin/python lr_simulation.py -resume 1
	cp runs/lr_simulation/default/figures/lr_simulation.png figures/
	$(VENV)/bin/python lr_simulation.py -seeds 10 -resume 1
	$(call keep,runs/lr_simulation/seeds-10,table1)
	$(VENV)/bin/python lr_simulation.py -seeds 10 -dc 10 -da 1000 -resume 1
	$(call keep,runs/lr_simulation/dc-10.0_da-1000.0_seeds-10,table1_decreasing_omega)
	$(VENV)/bin/python uci_run.py -table 1 -resume 1
	$(call keep,runs/uci_run/table_seed1_seeds20,uci)
	$(VENV)/bin/python uci_run.py -data boston -c all -seeds 100 -resume 1
	$(call keep,runs/uci_run/boston_all_seed1_seeds100,uci_boston_100_splits)
	-$(VENV)/bin/python uci_run.py -data concrete -c all -seeds 20 -lr 1e-5 -anneal 1 -resume 1  # half of the chains diverge
	$(call keep,runs/uci_run/concrete_all_seed1_seeds20_anneal-1.0_lr-1e-05,uci_concrete_lr_1e-5)
	$(VENV)/bin/python uci_run.py -data power-plant -c all -seeds 20 -resume 1
	$(call keep,runs/uci_run/power-plant_all_seed1_seeds20,uci_power_plant)
	$(VENV)/bin/python uci_run.py -data diabetes -c all -seeds 20 -resume 1
	$(call keep,runs/uci_run/diabetes_all_seed1_seeds20,uci_diabetes)
	$(VENV)/bin/python sa_convergence.py -resume 1
	$(call keep,runs/sa_convergence/default,sa_convergence)
	cp runs/sa_convergence/default/figures/sa_convergence.png figures/

# the reduced schedules of the MNIST and Fashion-MNIST results
REDUCED := -train 128 -thin 468 -amp 1
SHORT := $(REDUCED) -sn 12 -burn 4 -save_samples 1
ATTACK := -attack 1 -attack_images 2000 -pgd_images 200 -pgd_steps 10
short_runs = $(wildcard runs/posterior_cnn/*_seed$(1)_sn-12_train-128_burn-4_thin-468_amp-1_save_samples-1)
long_runs = $(wildcard runs/posterior_cnn/*_seed1_sn-36_train-128_burn-12_thin-468_amp-1)

results-images: $(RUN)
	for c in sa sghmc dropout vanilla; do \
	    for data in mnist fmnist; do for seed in 1 2; do \
	        $(VENV)/bin/python posterior_cnn.py -data $$data -c $$c $(SHORT) -seed $$seed -resume 1 || exit 1; \
	    done; done; \
	done
	for c in sa dropout; do \
	    $(VENV)/bin/python posterior_cnn.py -data fmnist -c $$c $(REDUCED) -sn 36 -burn 12 -resume 1 || exit 1; \
	done
	$(MAKE) figures-images

figures-images: $(RUN)
	for run in $(call short_runs,[12]); do \
	    case $$run in */mnist_*) other=fmnist;; *) other=mnist;; esac; \
	    $(VENV)/bin/python posterior_cnn.py -evaluate $$run -ood $$other || exit 1; \
	done
	for run in $(call short_runs,1); do $(VENV)/bin/python posterior_cnn.py -evaluate $$run $(ATTACK) || exit 1; done
	$(VENV)/bin/python posterior_cnn.py -evaluate $(filter %_dropout_seed1_sn-36_train-128_burn-12_thin-468_amp-1,$(long_runs)) \
	    -attack 1 -attack_images 2000 -pgd_images 0
	$(VENV)/bin/python -m experiment.compare table2 $(call short_runs,[12]) $(long_runs)
	$(VENV)/bin/python -m figures.adversarial figures/adversarial.png $(call short_runs,1)
	$(VENV)/bin/python -m figures.calibration figures/calibration.png $(call short_runs,[12])

# the reduced schedules of the ResNet20 results
TABLE3 := runs/table3
FINE := $(VENV)/bin/python bayes_cnn.py -prune 1 -pretrained $(TABLE3)/dense -train 125 -amp 1 -scale_to 50000 -resume 1

results-resnet: $(RUN)
	$(VENV)/bin/python bayes_cnn.py $(if $(CHECKPOINT),-pretrained $(CHECKPOINT)) -lr 2e-7 -invT 20000 -prune 0 -sn 20 \
	    -train 125 -amp 1 -resume 1 -out $(TABLE3)/dense
	$(FINE) -c sa -sn 10 -val 0.1 -milestones 7 9 -out runs/table3_validation/late
	$(FINE) -c sa -sn 10 -val 0.1 -milestones 4 7 -out runs/table3_validation/early
	for c in sa em sghmc; do $(FINE) -c $$c -sn 30 -out $(TABLE3)/$$c || exit 1; done
	for c in sa em; do \
	    $(FINE) -c $$c -sn 25 -milestones 10 18 -average 5 -out $(TABLE3)/$${c}_early || exit 1; \
	done
	for what in weight unit rho; do \
	    $(FINE) -pruning $$what -sn 4 -milestones 2 3 -out runs/table3_pruning/$${what}_0.9 || exit 1; \
	done
	for what in weight unit; do \
	    $(FINE) -pruning $$what -preset 0.5 -sn 2 -milestones 1 -out runs/table3_pruning/$${what}_0.5 || exit 1; \
	done
	for name in table3 table3_validation table3_pruning; do \
	    $(VENV)/bin/python -m experiment.compare $$name runs/$$name || exit 1; \
	done
	$(VENV)/bin/python -m figures.sparse_resnet figures/sparse_resnet.png $(addprefix $(TABLE3)/,sa em sghmc)

# the reduced schedules of the structured pruning results
SBP := $(VENV)/bin/python sbp_cnn.py -resume 1
FC := $(SBP) -model lenet-fc
FIVE := $(SBP) -model lenet5 -amp 1
TUNED := -noise_lr 10 -kl_weight 5 -threshold_sweep 40
COST := -c sbp -noise_lr 10 -warmup 2 -kl_layers 100 40
HELD_OUT := $(FC) -val 0.1 -pretrained runs/sbp_validation/fc_dense -sn 40

results-sbp: $(RUN)
	$(FC) -c dense -sn 60 -seeds 3 -out runs/sbp/fc_dense
	$(FC) -pretrained runs/sbp/fc_dense -c sbp -sn 200 -threshold_sweep 40 -out runs/sbp/fc_sbp_1
	for seed in 1 2 3; do \
	    $(FC) -pretrained runs/sbp/fc_dense -c sbp $(TUNED) -sn 60 -seed $$seed -out runs/sbp/fc_sbp_tuned_$$seed || exit 1; \
	done
	$(FC) -pretrained runs/sbp/fc_dense -c ssl -sn 60 -out runs/sbp/fc_ssl_1
	$(FC) -pretrained runs/sbp/fc_dense -c sparsevd -sn 10 -out runs/sbp/fc_sparsevd_1
	$(SBP) -model lenet5 -c dense -sn 40 -out runs/sbp/l5_dense
	$(FIVE) -pretrained runs/sbp/l5_dense -c sbpa -sn 40 -noise_lr 10 -threshold_sweep 40 -out runs/sbp/l5_sbpa_1
	$(FIVE) -pretrained runs/sbp/l5_dense -c sbpa $(TUNED) -sn 30 -out runs/sbp/l5_sbpa_tuned_1
	$(FIVE) -pretrained runs/sbp/l5_dense -c sbpa $(TUNED) -sn 30 -finetune 15 -out runs/sbp/l5_sbpa_tuned_ft_1
	$(FIVE) -pretrained runs/sbp/l5_dense -c ssl -sn 15 -out runs/sbp/l5_ssl_1
	$(FIVE) -pretrained runs/sbp/l5_dense -c sparsevd -sn 12 -out runs/sbp/l5_sparsevd_1
	$(FC) -val 0.1 -c dense -sn 30 -out runs/sbp_validation/fc_dense
	$(HELD_OUT) -c sbp -noise_lr 10 -out runs/sbp_validation/fc_sbp_noise10
	$(HELD_OUT) -c sbp -noise_lr 10 -kl_weight 5 -out runs/sbp_validation/fc_sbp_noise10_kl5
	$(SBP) -model lenet5 -val 0.1 -c dense -sn 12 -out runs/sbp_lenet5_validation/dense
	$(SBP) -model lenet5 -val 0.1 -pretrained runs/sbp_lenet5_validation/dense $(COST) -sn 20 -decay 12 -threshold_sweep 20 \
	    -out runs/sbp_lenet5_validation/cost
	$(SBP) -model lenet5 -c dense -sn 30 -out runs/sbp_lenet5/dense
	$(SBP) -model lenet5 -pretrained runs/sbp_lenet5/dense $(COST) -sn 25 -threshold_sweep 40 -out runs/sbp_lenet5/cost
	$(VENV)/bin/python -m figures.structured_pruning threshold figures/sbp_lenet5.png runs/sbp_lenet5/cost
	$(FC) -data mnist-random -dense_sn 30 -sn 30 -noise_lr 10 -allow_empty 1 -out runs/sbp_random/fc_1
	for name in sbp_lenet5 sbp_lenet5_validation sbp_random; do $(VENV)/bin/python -m experiment.compare $$name runs/$$name || exit 1; done
	$(VENV)/bin/python -m experiment.compare sbp_mnist runs/sbp
	$(VENV)/bin/python -m experiment.compare sbp_validation runs/sbp_validation
	$(VENV)/bin/python -m figures.structured_pruning threshold figures/sbp_threshold.png runs/sbp/fc_sbp_1 runs/sbp/fc_sbp_tuned_1 runs/sbp/l5_sbpa_1
	$(VENV)/bin/python -m figures.structured_pruning units figures/sbp_units.png runs/sbp/fc_sbp_tuned_1 runs/sbp/l5_sbpa_tuned_1
	$(VENV)/bin/python -m figures.structured_pruning curves figures/sbp_curves.png runs/sbp

# the reduced schedules of EM-MCMC on images
EM := $(VENV)/bin/python em_cnn.py -data fmnist -model resnet20 -resume 1 -sn 4 -cycles 2 -samples_per_cycle 1
SPARSE := $(EM) -rule square -warmup 1
EXAMPLE = $(VENV)/bin/python em_regression.py -resume 1 -example $(1) -out runs/em_regression/example$(1)

results-em: $(RUN)
	$(call EXAMPLE,1)
	$(call EXAMPLE,2)
	$(call EXAMPLE,3) -restarts 3
	$(call keep,runs/em_regression/example1,em_regression_1)
	$(call keep,runs/em_regression/example2,em_regression_2)
	$(call keep,runs/em_regression/example3,em_regression_3)
	$(VENV)/bin/python -m figures.em_selection figures/em_selection.png $(addprefix runs/em_regression/example,1 2 3)
	$(EM) -dense 1 -out runs/em/fmnist_dense
	$(EM) -c sgd -out runs/em/fmnist_sgd
	$(SPARSE) -eps0 1e-2 -soft 4e-3 -hard 3e-4 -out runs/em/fmnist_sparse
	$(SPARSE) -eps0 2e-2 -soft 4e-3 -hard 3e-4 -out runs/em/fmnist_sparse_2
	$(SPARSE) -eps0 2e-2 -soft 6e-3 -hard 4e-4 -out runs/em/fmnist_sparse_4
	$(SPARSE) -eps0 2e-2 -soft 1e-2 -hard 1e-3 -out runs/em/fmnist_sparse_3
	$(VENV)/bin/python -m experiment.compare em_images runs/em
	$(VENV)/bin/python -m figures.em_sparsity figures/em_sparsity.png runs/em/*

lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(RUN): requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -q -r requirements.txt
	touch $@

$(DEV): requirements-dev.txt $(RUN)
	$(VENV)/bin/python -m pip install -q -r requirements-dev.txt
	touch $@
