# Everything here works as root on a fresh Debian 12 or 13; doc/user.md and doc/sysadmin.md say more.

PREFIX ?= /usr/local
DESTDIR ?=
export PREFIX DESTDIR

.PHONY: help setup demo test test-slow lint format bench soak interop verify lock install uninstall clean

help:
	@echo "make setup      packages, and ./.venv/bin/pqtun"
	@echo "make demo       a tunnel between network namespaces, shown step by step"
	@echo "make test       lint, types, layers and all tests (test-slow: the ones that take minutes)"
	@echo "make bench      measurements"
	@echo "make soak       half an hour of traffic and faults, by the real clock"
	@echo "make interop    tests against PQConnect"
	@echo "make verify     the proofs in tamarin/, with tamarin-prover (scripts/install-tamarin)"
	@echo "make install    /opt/pqtun, $(PREFIX)/bin/pqtun, units, user (uninstall: the way back)"

setup:
	@scripts/setup

demo: setup
	@PYTHONPATH=. .venv/bin/python scripts/demo.py

test: setup
	@scripts/test

test-slow: setup
	@.venv/bin/pytest -m slow

lint: setup
	@scripts/lint

format: setup
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

bench: setup
	@.venv/bin/pip --quiet --disable-pip-version-check install --require-hashes --requirement benchmarks/requirements.lock
	@.venv/bin/python -m benchmarks

soak: setup
	@.venv/bin/python -m benchmarks.soak

interop: setup
	@.venv/bin/pytest -m 'interop and not slow'

verify:
	@scripts/run-tamarin

lock:
	@scripts/lock --upgrade

install:
	@scripts/install

uninstall:
	@scripts/uninstall

clean:
	rm -rf .venv .cache native/target pqtun/pump/*.so build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path "./.git/*" -prune -exec rm -rf {} +
