# make demo      make pictures, swap text keys and values site by site, and show which site carries the word
# make test      run the tests
# make lint      see that the code is formatted, free of what ruff.toml forbids, and that types fit
# make clean     take away .venv and what was built
# make help      print these lines
# The first three install into .venv what is missing, once; python3 and make are all that must be there.
# The demonstration needs less than the tests, which have diffusers to compare with.

PYTHON ?= python3
# on a busy machine threads that wait for each other cost more than they bring to models this small
export OMP_NUM_THREADS ?= 1
# a process need not compile what the one before it has compiled: half a second of every command
unexport PYTHONDONTWRITEBYTECODE
TEXTPATCH := .venv/bin/textpatch
SOURCE := a red sign that says "HELLO" on a blue wall
LINES := a red sign that says "OPEN" and "DAILY" on a blue wall
TARGET := a green badge that says "WORLD" on a striped yellow wall

.PHONY: demo test lint install clean help

demo: install
	@echo "planted-mmdit: one site was trained to carry the word; localize must find it"
	$(TEXTPATCH) localize planted-mmdit --pairs 8
	@echo "tiny-mmdit: nobody chose the site that carries the word"
	$(TEXTPATCH) localize tiny-mmdit --pairs 8 --same-scene
	$(TEXTPATCH) edit planted-mmdit --source '$(SOURCE)' --target '$(TARGET)'
	@echo "tiny-words writes two lines; the second word is another, and the first stays"
	$(TEXTPATCH) edit tiny-words --source '$(LINES)' --word 2=TIGER
	@echo
	@echo "Shown: of six sites one carries the word, and a swap there writes another word on the same sign."
	@echo "The pages are runs/*/report.html, the pictures of the edits runs/*/sheet.png. Try next:"
	@echo "  $(TEXTPATCH) edit tiny-mmdit --source '"'$(SOURCE)'"' --word TIGER"
	@echo "  $(TEXTPATCH) localize tiny-sdxl --pairs 8 --mode attribution"
	@echo "  $(TEXTPATCH) models     # what each small model writes; 'textpatch VERB --help' explains a verb"

test: .venv/.installed-test
	.venv/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: .venv/.installed-test
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/python tests/support/user_scripts.py
	.venv/bin/python -m pytest --long tests/house/test_types.py

install: .venv/.installed

.venv/.installed: setup.cfg .ci/install
	.ci/install $(PYTHON)
	touch $@

.venv/.installed-test: setup.cfg .ci/install
	.ci/install $(PYTHON) reference,test
	touch .venv/.installed $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

help:
	@sed -n 's/^# make/make/p' Makefile
