#!/usr/bin/env bash
# worker threads under steady load: no futex, no wake, no call beyond the budget of a short request, burst or chunk (strace)
# shellcheck source=../lib.sh
source .ci/lib.sh

need strace strace
need python3 python3
PYTHONDONTWRITEBYTECODE=1 timeout -k 10 300 python3 .ci/python/counting.py
