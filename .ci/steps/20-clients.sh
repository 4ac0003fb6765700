#!/usr/bin/env bash
# ollama and openai in Python and JavaScript, anthropic, LangChain and two published suites see one Ollama; the ledger equals three nodes' own accounts
# shellcheck source=../lib.sh
source .ci/lib.sh

python_with --only-binary :all: ollama openai anthropic langchain-ollama
javascript_with ollama openai
PYTHONDONTWRITEBYTECODE=1 timeout -k 10 300 "$PYTHON" .ci/python/clients.py "$JAVASCRIPT"

# Suites come in the source packages of the versions installed; the bounds of pytest are LangChain's own.
python_with --only-binary :all: 'pytest<9' 'pytest-asyncio<1' pytest-socket syrupy langchain-tests
suites="$HERDGATE_CI_DIR/suites"
rm -rf "$suites"
for package in langchain-ollama openai; do
    source_of "$package" "$suites"
done
PYTHONDONTWRITEBYTECODE=1 timeout -k 10 420 "$PYTHON" .ci/python/suites.py "$suites"
