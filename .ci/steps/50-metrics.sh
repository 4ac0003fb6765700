#!/usr/bin/env bash
# /metrics of the real binary under a little traffic is what Prometheus itself takes for good (promtool)
# shellcheck source=../lib.sh
source .ci/lib.sh

need_only promtool prometheus
need curl curl

work=$(mktemp -d)
"$HERDGATE_BIN" sim --nodes 2 --port 0 --control 0 --scale 0.01 --for 120 >"$work/sim.out" 2>&1 &
sim=$!
proxy=
# Both are ours, by their ids; both end by themselves as well.
trap '[ -z "$proxy" ] || kill "$proxy" 2>/dev/null; kill "$sim" 2>/dev/null; rm -rf "$work"' EXIT

# wait_for FILE PATTERN: prints the first match, once there is one.
wait_for() {
    for _ in $(seq 300); do
        if grep -om1 -E "$2" "$1" 2>/dev/null; then return 0; fi
        sleep 0.1
    done
    echo "never in $1: $2" >&2
    cat "$1" >&2
    return 1
}

node=$(wait_for "$work/sim.out" 'http://127\.0\.0\.1:[0-9]+')
cat >"$work/herdgate.yaml" <<YAML
listen: 127.0.0.1:0
data: $work/data
nodes: [ { url: '$node' }, { url: 'http://127.0.0.1:9', name: 'down "one"' } ]
log: { format: json }
YAML
timeout -k 5 120 "$HERDGATE_BIN" serve --config "$work/herdgate.yaml" 2>"$work/log" &
proxy=$!
address=$(wait_for "$work/log" '"address":"127\.0\.0\.1:[0-9]+' | cut -d'"' -f4)
for _ in $(seq 100); do
    if curl -fsS "http://$address/api/tags" | grep -q llama3.2; then break; fi
    sleep 0.1
done
for body in '{"model":"llama3.2:3b","prompt":"x"}' '{"model":"nobody-has-it","prompt":"x"}' '{'; do
    curl -sS -o "$work/answer" "http://$address/api/generate" -d "$body"
done
curl -fsS "http://$address/metrics" >"$work/metrics"
test "$(grep -c '^# TYPE .* histogram$' "$work/metrics")" -ge 5
# Says nothing when all is well; a lint is a failure too.
said=$(promtool check metrics <"$work/metrics" 2>&1) || { echo "$said"; exit 1; }
[ -z "$said" ] || { echo "$said"; exit 1; }
echo "$(grep -c '^# TYPE' "$work/metrics") families, $(grep -vc '^#' "$work/metrics") samples"
