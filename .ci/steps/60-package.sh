#!/usr/bin/env bash
# the unit passes systemd-analyze, the manifests their schema; the image's content runs alone in an empty root
# shellcheck source=../lib.sh
source .ci/lib.sh

python_with --only-binary :all: kubernetes-validate
printed="$HERDGATE_CI_DIR/package"
rm -rf "$printed"
mkdir -p "$printed"
for what in systemd socket dockerfile kubernetes config; do "$HERDGATE_BIN" package "$what" >"$printed/$what"; done

"$(dirname "$PYTHON")/kubernetes-validate" --strict --quiet "$printed/kubernetes"
# A configuration that is printed is one that loads.
"$HERDGATE_BIN" check --config "$printed/config" >/dev/null

if command -v systemd-analyze >/dev/null 2>&1; then
    # The unit as it is, but for where the binary lies.
    sed "s|/usr/local/bin/herdgate|$HERDGATE_BIN|" "$printed/systemd" >"$printed/herdgate.service"
    cp "$printed/socket" "$printed/herdgate.socket"
    systemd-analyze verify --man=no "$printed/herdgate.service" "$printed/herdgate.socket"
    # 0 is locked up, 10 is wide open.
    systemd-analyze security --offline=true --threshold=20 "$printed/herdgate.service" | tail -n 1
else
    echo 'no systemd-analyze here: the unit is not verified'
fi

# The image as people build it, where there is a builder; its content is tried without one below.
if docker info >/dev/null 2>&1; then
    docker build --quiet --file src/package/Dockerfile .
else
    echo 'no builder of images here: the Dockerfile is not built'
fi

# Completions are shell code, man pages are for man.
"$HERDGATE_BIN" completions bash | bash -n
for page in '' serve import; do "$HERDGATE_BIN" man $page | grep -q '^\.TH '; done

PYTHONDONTWRITEBYTECODE=1 timeout -k 10 180 "$PYTHON" .ci/python/image.py
