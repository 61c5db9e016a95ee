# Python 3.11 or later and make are enough: every target first sets up .venv, once.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test test-slow lint docs site licenses clean

help:
	@echo "make demo   measure the bundled checkpoint into demo/ and say what came out"
	@echo "make test   all tests but the slow ones, which make test-slow runs"
	@echo "make lint   style, the order of imports, types"
	@echo "make docs   write the generated pages of docs/ again and build the site"
	@echo "make site   build the site from docs/ into build/site"
	@echo "make licenses  list the packages that mfdiag needs, with their licenses"
	@echo "make clean  remove .venv, demo/ and build/"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mfdiag needs Python 3.11 or later; set PYTHON.")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/mfdiag sweep --out demo --overwrite
	$(BIN)/mfdiag variance --out demo --overwrite
	$(BIN)/mfdiag coefficient --out demo --overwrite
	$(BIN)/mfdiag doctor --out demo --overwrite
	$(BIN)/mfdiag report demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python -m mfdiag.tables.docs
	$(BIN)/python -m mfdiag.cli.docs
	$(BIN)/python -m mfdiag.models.cards.docs
	$(BIN)/python -m mfdiag.diagnosis.docs
	$(BIN)/python -m mfdiag.reporting.family
	$(MAKE) site

site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

licenses: $(READY)
	@$(BIN)/pip-licenses --from=mixed --order=name --packages $$($(BIN)/python -c "$$NEEDED")

# Names of what mfdiag requires, and of what that requires in turn; extras of mfdiag count if they are installed
define NEEDED
import re
from importlib.metadata import PackageNotFoundError, requires
names, todo = set(), ["mfdiag"]
while todo:
    name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
    try:
        required = requires(name) or []
    except PackageNotFoundError:
        continue
    if name not in names:
        names.add(name)
        todo += [re.match(r"[\w.-]+", r)[0] for r in required if "extra ==" not in r or (name == "mfdiag" and "dev" not in r)]
print(*sorted(names))
endef
export NEEDED

clean:
	rm -rf .venv demo build
