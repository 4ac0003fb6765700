#!/usr/bin/env bash
# ollama-python (sync, async), openai, anthropic and LangChain see one Ollama; the ledger equals three nodes' own accounts
# shellcheck source=../lib.sh
source .ci/lib.sh

python_with --only-binary :all: ollama openai anthropic langchain-ollama
PYTHONDONTWRITEBYTECODE=1 timeout -k 10 300 "$PYTHON" .ci/python/clients.py
